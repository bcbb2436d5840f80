"""The daemon's teller: every run in the log and in the metrics."""

from __future__ import annotations

from catalog.records import Claimed, Finish, Lease, Outcome, Run
from reconciler.daemon.teller import is_quiet
from reconciler.run.messages import Done
from reconciler.telemetry import logs
from reconciler.telemetry.events import Event
from reconciler.telemetry.metrics import Metrics


class Loud:
    """Implements ``Teller`` with structlog and Prometheus."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._log = logs.get_logger()
        self._noted: dict[str, dict[str, dict[str, None]]] = {}

    def began(self, claimed: Claimed, delay: float | None) -> None:
        self._metrics.run_started(claimed.lease.pipeline, delay)
        self._log.debug(
            Event.RUN_STARTED,
            pipeline=claimed.lease.pipeline,
            run=claimed.lease.epoch,
            reason=claimed.run.reason,
        )

    def ended(self, claimed: Claimed, run: Run | None, finish: Finish, done: Done) -> None:
        name, epoch = claimed.lease.pipeline, claimed.lease.epoch
        if run is None or run.outcome is None:
            self._log.warning(Event.RUN_LOST, pipeline=name, run=epoch, reason=finish.reason)
            return
        seconds = ((run.finished_at or run.started_at) - claimed.run.started_at) / 1e6
        self._metrics.run_finished(name, run.outcome, seconds, run.rows, run.rejected)
        say = self._log.info
        if is_quiet(claimed, run) or _waits_on(claimed, run):
            say = self._log.debug
        elif run.outcome in (Outcome.FAILED, Outcome.HELD):
            say = self._log.warning
        say(
            Event.RUN_FINISHED,
            pipeline=name,
            run=epoch,
            outcome=run.outcome.value,
            rows=run.rows,
            seconds=round(seconds, 3),
            reason=run.reason,
        )
        self._note(run, done)
        held = {s.stream: s.hold.reason for s in claimed.streams if s.hold is not None}
        for result in run.streams:
            # One that stays as it was is looked at by every run, and opened by the first alone.
            if result.hold is not None and result.hold.reason != held.get(result.stream):
                self._log.warning(
                    Event.HOLD_OPENED, pipeline=name, stream=result.stream, reason=result.reason
                )
            if result.rejected:
                self._log.warning(
                    Event.ROWS_REJECTED, pipeline=name, stream=result.stream, rows=result.rejected
                )
        if finish.park:
            self._log.error(Event.PIPELINE_PARKED, pipeline=name, reason=finish.park)

    def _note(self, run: Run, done: Done) -> None:
        """Say what reads assume when it is new, not at every run; a run may be of some streams."""
        said = self._noted.setdefault(run.pipeline, {})
        found: dict[str, dict[str, None]] = {result.stream: {} for result in run.streams}
        for stream, note in done.notes:
            found.setdefault(stream, {})[note] = None
        for stream, notes in found.items():
            for note in notes:
                if note not in said.get(stream, ()):
                    self._log.info(Event.RUN_NOTE, pipeline=run.pipeline, stream=stream, note=note)
            said[stream] = notes

    def lost(self, lease: Lease) -> None:
        self._metrics.lease_lost()
        self._log.warning(Event.LEASE_LOST, pipeline=lease.pipeline, run=lease.epoch)

    def fenced(self, lease: Lease) -> None:
        self._metrics.write_fenced()
        self._log.warning(Event.WRITE_FENCED, pipeline=lease.pipeline, run=lease.epoch)

    def secret(self, value: str) -> None:
        logs.register_secret(value)

    def redact(self, text: str) -> str:
        return logs.redact(text)


def _waits_on(claimed: Claimed, run: Run) -> bool:
    """It is held as the run before was, and brought nothing: nobody has answered since."""
    same = run.outcome is Outcome.HELD and run.reason == claimed.pipeline.last_reason
    return same and not run.rows and not run.rejected
