"""Real servers for tests, private to the session: own data folder, own port, ended by pid."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.patience import PATIENCE

if TYPE_CHECKING:
    import psycopg

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "max_prepared_transactions": "8",
    "max_connections": "50",
    "shared_buffers": "32MB",
    "wal_level": "logical",
    "autovacuum": "off",
}


class PostgresServer:
    """A running server; ``postgres`` is its superuser, and everybody is trusted."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, user: str = "postgres", database: str = "postgres") -> str:
        """A URL without a password."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def connect(self, user: str = "postgres", database: str = "postgres") -> psycopg.Connection:
        """A connection in autocommit; the caller closes it (``with``)."""
        import psycopg  # here, so that tests without a server do not wait for it

        return psycopg.connect(self.url(user, database), autocommit=True)

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements, each in a transaction of its own; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with self.connect(database=database) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
                rows = cursor.fetchall() if cursor.description else []
        return rows

    def new_database(self, name: str, like: str = "") -> str:
        """Make an empty database, with the options ``like``; its name."""
        self.execute(
            f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}" {like}'
        )
        return name


def postgres_programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres``: from PATH, or as Debian installs them."""
    found = shutil.which("initdb")
    if found and shutil.which("postgres"):
        return Path(found).resolve().parent  # where the others are too
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    return folders[0].parent if folders else None


def _account() -> tuple[int, int] | None:
    """Who runs the server: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(server: PostgresServer, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it does; False: it ended, or patience did."""
    import psycopg

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            server.connect().close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return process.poll() is None  # and not another's server


class PrivateServer(PostgresServer):
    """A server that can be stopped and started again; its data stays."""

    def __init__(
        self,
        folder: Path,
        programs: Path,
        who: dict[str, Any],
        settings: dict[str, str],
        primary: PostgresServer | None = None,
    ) -> None:
        """``primary``: whose standby it is, which may be promoted."""
        super().__init__(_free_port())
        self._settings = _SETTINGS | settings
        self._folder, self._programs, self._who = folder, programs, who
        self._process: subprocess.Popen[bytes] | None = None
        self._has_run = False
        if primary is None:
            self._run("initdb", "-D", "data", "-A", "trust", "-U", "postgres", "--no-sync", "-E",
                      "UTF8", "--locale=C.UTF-8")  # fmt: skip
        else:
            self._run("pg_basebackup", "-D", "data", "-d", primary.url(), "-R", "--no-sync",
                      "--checkpoint=fast")  # fmt: skip

    def _run(self, program: str, *args: str) -> None:
        subprocess.run(
            [self._programs / program, *args],
            check=True, capture_output=True, cwd=self._folder, **self._who,
        )  # fmt: skip

    def start(self) -> None:
        """Start, and return when it answers.

        Its port was free when it was looked for, or when the server stopped; whoever took it since,
        for a connection of its own, is waited for, or the first start takes another.
        """
        log = self._folder / "server.log"
        deadline = time.monotonic() + PATIENCE
        while not _answers(self, self._launch(log)):
            said = log.read_text()
            if "could not create any TCP/IP sockets" not in said or time.monotonic() > deadline:
                pytest.fail(f"the PostgreSQL server did not start:\n{said[-2000:]}")
            if not self._has_run:
                self.port = _free_port()
        self._has_run = True

    def _launch(self, log: Path) -> subprocess.Popen[bytes]:
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", "-p", str(self.port), *settings],
                stdout=output, stderr=output, cwd=self._folder, **self._who,
            )  # fmt: skip
        return self._process

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: fast, clients are disconnected. SIGQUIT: at once, as a crash."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
            self._process = None


@contextmanager
def private_postgres(
    primary: PostgresServer | None = None, **settings: str
) -> Iterator[PrivateServer]:
    """A server of one's own, or a standby, running; the test is skipped where there can be none."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("needs initdb and postgres, in PATH or under /usr/lib/postgresql")
    if primary is not None and not (programs / "pg_basebackup").exists():
        pytest.skip("needs pg_basebackup beside initdb")
    account = _account()
    if os.geteuid() == 0 and account is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user to run it as")
    folder = Path(tempfile.mkdtemp(prefix="reconciler-postgres-"))
    who: dict[str, Any] = {}
    if account is not None:
        os.chown(folder, *account)
        who = {"user": account[0], "group": account[1], "extra_groups": []}
    try:
        server = PrivateServer(folder, programs, who, settings, primary)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for the whole session; each test makes a database or tables of its own."""
    with private_postgres() as server:
        yield server
