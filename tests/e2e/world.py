"""A small world for end-to-end tests: a source, a config, real daemons, and an independent look."""

from __future__ import annotations

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import duckdb

from reconciler.cli.main import main
from tests.patience import PATIENCE

RECONCILER = str(Path(sys.executable).with_name("reconciler"))


class Daemon:
    """A real ``reconciler serve``, its log lines kept as they come."""

    def __init__(
        self, config: Path, env: dict[str, str] | None = None, within: Sequence[str] = ()
    ) -> None:
        """``within``: a command that becomes this one in surroundings of its own."""
        self.events: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [*within, RECONCILER, "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"event": "text", "text": line.rstrip()}
            with self._news:
                self.events.append(event)
                self._news.notify_all()

    def wait_for(
        self,
        name: str,
        matches: Callable[[dict[str, Any]], bool] = lambda _: True,
        *,
        after: int = 0,
    ) -> dict[str, Any]:
        """The first event of that name from position ``after`` on; waits for it."""
        end = time.monotonic() + PATIENCE
        with self._news:
            while True:
                for event in self.events[after:]:
                    if event["event"] == name and matches(event):
                        return event
                # A daemon that is gone says nothing more.
                if not self._reader.is_alive() or time.monotonic() > end:
                    tail = "\n".join(map(str, self.events[-15:]))
                    raise AssertionError(f"no event {name!r} within {PATIENCE} s; last:\n{tail}")
                self._news.wait(0.5)

    def wait_ready(self) -> str:
        """The base URL, once runs may start."""
        self.wait_for("daemon_ready")
        return str(self.wait_for("web_listening")["url"])

    def finished(self, pipeline: str, outcome: str, *, after: int = 0) -> dict[str, Any]:
        return self.wait_for(
            "run_finished",
            lambda e: e["pipeline"] == pipeline and e["outcome"] == outcome,
            after=after,
        )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.died()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.died()

    def died(self) -> int:
        """Wait for the process to end by itself; the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


def eventually(check: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until true; fail with ``what`` when it never is."""
    end = time.monotonic() + patience
    while not check():
        if time.monotonic() > end:
            raise AssertionError(f"never came true: {what}")
        time.sleep(0.02)


def read_duckdb(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """What a query finds there; nothing while there is no such file or table.

    A writer keeps readers out as long as it writes; its end is waited for.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with duckdb.connect(str(path), read_only=True) as db:
                return db.execute(sql).fetchall()
        except duckdb.CatalogException:
            return []
        except duckdb.IOException as error:
            if "Could not set lock" not in str(error) or time.monotonic() > end:
                return []
            time.sleep(0.01)


class World:
    """One project in one directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self.source = folder / "source.db"
        self.within: Sequence[str] = ()
        """See ``Daemon``."""
        self._daemons: list[Daemon] = []

    def write_config(self, body: str, *, lease_ttl: str = "3s", grace: str = "2s") -> None:
        """``body``: connections and pipelines. Renewal and grace are short, the port is any."""
        self.save(
            f'project = "test"\n[daemon]\nlisten = "127.0.0.1:0"\n'
            f'lease_ttl = "{lease_ttl}"\ngrace = "{grace}"\n\n{body}'
        )

    def save(self, text: str) -> None:
        """The config as it is from now on. Saved as editors save: nobody ever reads half of it."""
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.config)

    def start(self, **env: str) -> Daemon:
        daemon = Daemon(self.config, env, self.within)
        self._daemons.append(daemon)
        return daemon

    def do(self, *args: str, code: int = 0, config: Path | None = None) -> str:
        """As ``cli``, in this process: for what is proven of daemons, and not of the command."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            found = main(["--config", str(config or self.config), *args])
        assert found == code, f"exit {found} of {args}:\n{out.getvalue()}\n{err.getvalue()}"
        return out.getvalue()

    def cli(self, *args: str, code: int | None = 0, config: Path | None = None, **env: str) -> str:
        """Run a command of the program; its stdout. ``code``: the exit code to expect."""
        done = subprocess.run(
            [RECONCILER, *args, "--config", str(config or self.config)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            env={**os.environ, **env},
            check=False,
        )
        if code is not None:
            assert done.returncode == code, f"exit {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def fill(self, table: str, rows: Iterable[tuple[int, str, str]]) -> None:
        """Rows of (id, updated_at, name) into a table of the SQLite source, made when absent."""
        with sqlite3.connect(self.source) as db:
            db.execute("pragma journal_mode = wal")  # a reader does not keep a writer out
            db.execute(
                f'create table if not exists "{table}" '
                "(id integer primary key, updated_at timestamp not null, name text)"
            )
            db.execute(f'create index if not exists "{table}_by_time" on "{table}" (updated_at)')
            db.executemany(
                f'insert into "{table}" (id, updated_at, name) values (?, ?, ?) '
                "on conflict (id) do update set updated_at = excluded.updated_at, "
                "name = excluded.name",
                rows,
            )
        db.close()

    def source_rows(self, table: str) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(self.source)
        rows = db.execute(f'select id, name from "{table}" order by id').fetchall()
        db.close()
        return rows

    def duckdb_rows(self, table: str, file: str = "out.duckdb") -> list[tuple[Any, ...]]:
        """The destination as an independent reader sees it; empty when there is none yet."""
        return read_duckdb(self.folder / file, f'select id, name from "{table}" order by id')

    def parquet_rows(self, table: str, folder: str = "lake") -> list[tuple[Any, ...]]:
        pattern = str(self.folder / folder / table / "**" / "*.parquet")
        try:
            return duckdb.sql(
                f"select id, name from read_parquet('{pattern}') order by id"
            ).fetchall()
        except duckdb.IOException:
            return []

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.kill()
