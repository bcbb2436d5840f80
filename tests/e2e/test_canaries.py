"""Secrets that sing: wherever a secret can be, and then a search of all that the program leaves.

Each has a word in it that survives every way of writing it (percent-encoded, escaped, quoted), and
is searched for in base64 besides, at each of its three alignments.
"""

from __future__ import annotations

import base64
import os
import subprocess
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from reconciler.cli.main import main
from tests.e2e.world import PATIENCE, RECONCILER, Daemon, World, eventually
from tests.servers import PostgresServer

CANARIES = {
    kind: f"kanarie{number}{kind}\N{LATIN SMALL LETTER E WITH ACUTE} /@:%25'\"\\{number}"
    for number, kind in enumerate(
        ("Env", "File", "Credential", "Wrong", "Written", "InUrl", "Variable"), start=71
    )
}
WORDS = {kind: value[: len("kanarie71") + len(kind)].encode() for kind, value in CANARIES.items()}


def forms(kind: str) -> Iterator[bytes]:
    """What to search for: the word, and what base64 makes of it wherever it stands."""
    word = WORDS[kind]
    yield word
    for before in range(3):
        coded = base64.b64encode(b"\0" * before + word)
        yield coded[4 if before else 0 : -4]
    yield word.hex().encode()


class Evidence:
    """All that was seen, by where."""

    def __init__(self) -> None:
        self.seen: dict[str, bytes] = {}

    def add(self, where: str, what: str | bytes) -> None:
        found = what.encode("utf-8", "surrogateescape") if isinstance(what, str) else what
        self.seen[where] = self.seen.get(where, b"") + found

    def add_folder(self, where: str, folder: Path, *, besides: frozenset[str]) -> None:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.name not in besides:
                self.add(f"{where}: {file.relative_to(folder)}", file.read_bytes())

    def sings(self) -> list[str]:
        """Where a secret was found, and which."""
        return [
            f"{kind} in {where}: …{_around(text, form)!r}…"
            for where, text in self.seen.items()
            for kind in CANARIES
            for form in forms(kind)
            if form in text
        ]


def _around(text: bytes, form: bytes) -> bytes:
    at = text.index(form)
    return text[max(0, at - 80) : at + 80]


def processes(daemon: Daemon) -> list[int]:
    """The daemon and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        if stat:
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [daemon.process.pid]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


# -- the world ------------------------------------------------------------------------------------


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _asks(server: PostgresServer) -> bool:
    """The server has taken up that these accounts need their passwords."""
    import psycopg

    try:
        server.connect("canary_env").close()
    except psycopg.OperationalError:
        return True
    return False


@pytest.fixture
def world(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[World]:
    """Accounts with passwords on a real server, which repeats one of them in an error."""
    server = postgres_server
    database = server.new_database("canaries")
    for role, kind in (("canary_env", "Env"), ("canary_file", "File")):
        server.execute(
            f"DROP ROLE IF EXISTS {role}",
            f"CREATE ROLE {role} LOGIN PASSWORD {literal(CANARIES[kind])}",
        )
    hba = Path(server.execute("SHOW hba_file")[0][0])
    lines = "".join(f"host all canary_{r} 127.0.0.1/32 scram-sha-256\n" for r in ("env", "file"))
    if lines not in hba.read_text():
        hba.write_text(lines + hba.read_text())
        server.execute("SELECT pg_reload_conf()")
        eventually(lambda: _asks(server), "the server asks for a password")
    password = CANARIES["Env"]
    server.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, updated_at timestamptz NOT NULL DEFAULT now())",
        "INSERT INTO orders SELECT n, '2026-01-01' FROM generate_series(1, 20) n",
        "CREATE FUNCTION boom(n int) RETURNS int LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'no entry with %', {literal(password)}; END $$",
        "CREATE VIEW echo AS SELECT id, updated_at, boom(id) AS n FROM orders",
        "GRANT SELECT ON orders, echo TO canary_env, canary_file",
        database=database,
    )
    world = World(tmp_path)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "canary").write_text(CANARIES["Credential"])
    (secrets / "file").write_text(CANARIES["File"] + "\n")
    (secrets / "wrong").write_text(CANARIES["Wrong"])
    world.write_config(config(server.port, database), lease_ttl="60s")
    yield world
    world.close()


def config(port: int, database: str) -> str:
    def connection(name: str, user: str, password: str, at: int = port) -> str:
        return (
            f'[connections.{name}]\nconnector = "sql"\npassword = "{password}"\n'
            f'url = "postgresql://{user}@127.0.0.1:{at}/{database}"\n'
        )

    def pipeline(name: str, source: str, stream: str = "public.orders") -> str:
        return (
            f'[pipelines.{name}]\nsource = "{source}"\ndestination = "lake"\nmode = "append"\n'
            f'cursor = ["updated_at"]\nretries = 0\nschedule = "every 3650d"\n'
            f'[pipelines.{name}.streams."{stream}"]\ntable = "{name}"\n'
        )

    return (
        connection("by_env", "canary_env", "env:CANARY_ENV")
        + connection("by_file", "canary_file", "file:secrets/file")
        + connection("by_wrong", "canary_env", "file:secrets/wrong")
        + connection("by_credential", "canary_env", "credential:canary", at=1)
        + '[connections.lake]\nconnector = "parquet"\npath = "lake"\n'
        + pipeline("by_env", "by_env")
        + pipeline("by_file", "by_file")
        + pipeline("by_wrong", "by_wrong")
        + pipeline("by_credential", "by_credential")
        + pipeline("echoing", "by_env", "public.echo")
        + pipeline("telling", "by_env")
        + pipeline("confessing", "by_file")
        + pipeline("blurting", "by_env")
    )


ENDS = {
    "by_env": "succeeded",
    "by_file": "succeeded",
    "by_wrong": "failed",
    "by_credential": "failed",
    "echoing": "failed",
    "telling": "failed",
    "confessing": "failed",
    "blurting": "failed",
}
COMMANDS = (
    *("check", "runs --json", "why telling", "logs blurting", "config show", "discover by_wrong"),
)
MORE = (
    *("status", "plan", "leases", "config show by_env", "discover by_env", "why by_wrong"),
    *("show confessing", "show telling", "logs telling", "logs confessing", "catalog check"),
    *("schema by_env.public.orders", "cursor get by_env.public.orders", "pause echoing", "runs"),
    *("resume echoing", "run by_wrong", "refresh by_file", "why echoing", "why confessing"),
)


def environment(world: World) -> dict[str, str]:
    """Workers that tell all they know, and secrets in variables and a systemd folder."""
    broken = str(Path(__file__).parent.parent / "broken_workers")
    path = os.pathsep.join(filter(None, (broken, os.environ.get("PYTHONPATH"))))
    return {
        "PYTHONPATH": path,
        "CANARY_ENV": CANARIES["Env"],
        "CREDENTIALS_DIRECTORY": str(world.folder / "secrets"),
    }


def look_over(evidence: Evidence, world: World, daemon: Daemon, url: str) -> None:
    """Everything that a process, a page or a file shows while the daemon runs."""
    for path in ("", "metrics", "api/status", "healthz", "readyz", "?state=parked", "?q=b"):
        with urllib.request.urlopen(url + path, timeout=PATIENCE) as answer:  # an error is raised
            evidence.add(f"page {path}", answer.read())
    for pid in processes(daemon):
        try:
            evidence.add("a process list", Path(f"/proc/{pid}/cmdline").read_bytes())
            if pid != daemon.process.pid:
                evidence.add(
                    "the environment of a worker", Path(f"/proc/{pid}/environ").read_bytes()
                )
        except (FileNotFoundError, ProcessLookupError):
            continue
    evidence.add_folder("folder", world.folder, besides=frozenset({"canary", "file", "wrong"}))


@pytest.mark.postgres
def test_no_secret_is_in_anything_that_the_program_leaves(world: World) -> None:
    search(world, COMMANDS, alone=("telling",))


@pytest.mark.slow
@pytest.mark.postgres
def test_no_secret_is_in_anything_that_any_command_says(world: World) -> None:
    everything = [f"{command}{form}" for command in MORE for form in ("", " --json")]
    search(world, (*COMMANDS, *everything), alone=("telling", "echoing", "by_file", "blurting"))


def search(world: World, commands: Iterable[str], alone: Iterable[str]) -> None:
    evidence = Evidence()
    env = environment(world)
    daemon = world.start(**env)
    url = daemon.wait_ready()
    for name, outcome in ENDS.items():
        daemon.finished(name, outcome)
    look_over(evidence, world, daemon, url)
    for command in commands:
        evidence.add(command, said(world, command.split(), env))
    assert daemon.stop() == 0
    evidence.add("the daemon's log", "\n".join(map(str, daemon.events)))
    for name in alone:  # by itself, with no daemon
        evidence.add(f"run {name}, alone", said(world, ["run", name], env))
    evidence.add_folder("folder", world.folder, besides=frozenset({"canary", "file", "wrong"}))
    assert len(evidence.seen["the daemon's log"]) > 1000
    sings = evidence.sings()
    assert not sings, "\n".join(sings)
    # The search would have found them: what was redacted is there, as a mark.
    assert b"[secret]" in evidence.seen["the daemon's log"]
    assert evidence.seen["the environment of a worker"]


def said(world: World, args: list[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        [RECONCILER, *args, "--config", str(world.config)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **env},
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


# -- in a config that is wrong ---------------------------------------------------------------------

PLACES = {
    "as a password": 'password = "CANARY"',
    "in a URL": 'url = "postgresql://user:CANARY@h/d"',
    "percent-encoded in a URL": 'url = "postgresql://user:QUOTED@h/d"',
    "in a URL's query": 'url = "postgresql://user@h/d?password=QUOTED"',
    "in a key of no meaning": 'token = "CANARY"',
    "in a file that does not parse": 'password = "CANARY',
}


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_that_was_written_down_is_said_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    value = "kanarie75Written-9"
    path = tmp_path / "config.toml"
    base = 'project = "p"\n[connections.db]\nconnector = "sql"\n'
    rest = "" if "url =" in PLACES[place] else 'url = "postgresql://h/d"\n'
    text = PLACES[place].replace("CANARY", value).replace("QUOTED", quote(value + "/@", safe=""))
    path.write_text(f'{base}{rest}{text}\n[pipelines.x]\nsource = "nowhere"\n')
    for command in ("check", "status", "serve"):
        code = main(["--config", str(path), *command.split()])
        out, err = capfd.readouterr()
        assert code != 0 or command == "status", (command, out, err)
        assert "kanarie75Written" not in out + err, (command, out, err)
        assert "Traceback" not in err
