"""A PostgreSQL server of our own with the benchmark's table, for the time of a measurement."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROWS = 1_000_000
_TABLE = f"""
create table mixed as select
    i::bigint as id,
    (i % 1000)::int as shop,
    'customer ' || (i::bigint * 7919 % 100003) as customer,
    (i % 100000 / 100.0)::numeric(12, 2) as amount,
    (i * 1.5)::float8 as weight,
    i % 7 = 0 as paid,
    date '2020-01-01' + (i % 2000)::int as booked_on,
    timestamptz '2024-01-01' + i * interval '1 second' as updated_at,
    md5(i::text)::uuid as token,
    case when i % 10 = 0 then null else 'a note of some length, number ' || i end as note
from generate_series(1, {ROWS}) i;
alter table mixed add primary key (id);
create table tiny as select * from mixed limit 1;
alter table tiny add primary key (id);
vacuum analyze mixed;
"""


def programs() -> Path | None:
    """Where the server's programs are; None: not on this machine."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return folders[0] if folders else None


def _demote() -> pwd.struct_passwd | None:
    """The server refuses to run as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The URL of a running server that has the table ``mixed``."""
    bin_, user = programs(), _demote()
    assert bin_ is not None
    data = folder / "pg"
    data.mkdir()
    if user is not None:
        os.chown(data, user.pw_uid, user.pw_gid)
        for parent in (folder, *folder.parents):
            if not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o001)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if user is not None:
        quiet |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    subprocess.run(
        [bin_ / "initdb", "-D", data, "-U", "bench", "-A", "trust", "--no-sync"],
        check=True, cwd="/", **quiet,
    )  # fmt: skip
    process = subprocess.Popen(
        [bin_ / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", data,
         "-c", "fsync=off"],
        cwd="/", **quiet,
    )  # fmt: skip
    url = f"postgresql://bench@127.0.0.1:{port}/postgres"
    try:
        subprocess.run([bin_ / "pg_isready", "-q", "-d", url, "-t", "30"], check=False)
        for _ in range(100):
            made = subprocess.run(
                [bin_ / "psql", "-q", url, "-c", "select 1"], capture_output=True, check=False
            )
            if made.returncode == 0:
                break
            subprocess.run(["sleep", "0.1"], check=False)
        subprocess.run([bin_ / "psql", "-q", url, "-v", "ON_ERROR_STOP=1"],
                       input=_TABLE, text=True, check=True)  # fmt: skip
        yield url
    finally:
        process.terminate()
        process.wait(30)
