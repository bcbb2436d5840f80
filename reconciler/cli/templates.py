"""Config text: what ``init`` writes, and what ``discover`` prints to be pasted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from reconciler.cli.output import count

if TYPE_CHECKING:
    from reconciler.connectors.ports import FoundStream

_MOST = 8
"""Candidates for a cursor that are named."""

_HEAD = """\
# Check it with:  reconciler check
# Every key:      reconciler config schema, and the documentation
project = "shop"
state_dir = "state"                  # the catalog lives here: back it up, keep it off NFS
"""

_SOURCES = {
    "sqlite": """\
[connections.shop_db]
connector = "sql"
url = "sqlite:///shop.sqlite"        # relative to this file; four slashes: absolute
""",
    "postgres": """\
[connections.shop_db]
connector = "sql"
url = "postgresql://reader@localhost:5432/shop"
password = "env:SHOP_DB_PASSWORD"    # env:NAME, file:PATH or credential:NAME; never the secret
""",
    "csv": """\
[connections.inbox]
connector = "files"
path = "inbox"                       # the directory that files arrive in
""",
}

_DESTINATION = """\
[connections.warehouse]
connector = "duckdb"
path = "shop.duckdb"                 # made when it is not there
schema = "raw"
"""

_TABLES = """\
[pipelines.shop]
source = "shop_db"
destination = "warehouse"
schedule = "every 15m"               # or five cron fields; without one it runs when asked to
select = ["*"]                       # streams; "!name" takes one away
cursor = ["updated_at"]              # the first that the table has; none of them: the whole table
mode = "merge"                       # the newest row per key wins; or "append", "replace"
"""

_FILES = """\
[pipelines.shop]
source = "inbox"
destination = "warehouse"
schedule = "every 1m"                # or five cron fields; without one it runs when asked to
mode = "append"

[pipelines.shop.streams.orders]
path = "orders_*.csv"                # in the directory of the connection
format = { type = "csv", delimiter = "," }
columns = {}                         # such as { amount = "decimal(18,2)" }; else all is text
"""


def config_for(kind: str) -> str:
    """A whole small config for a source of this kind: ``sqlite``, ``postgres`` or ``csv``."""
    pipeline = _FILES if kind == "csv" else _TABLES
    return "\n".join((_HEAD, _SOURCES[kind], _DESTINATION, pipeline))


_ABOUT_INDEXES = " A cursor marked 'index' is read in order and committed on the way."


def pipeline_for(connection: str, found: Sequence[FoundStream], *, cursors: bool = True) -> str:
    """A pipeline with every stream found, ready to be pasted into the config.

    ``cursors``: by which column a stream is read is the config's to say (``sql``); where it is
    not, the connector's own defaults are right.
    """
    streams = count(len(found), "stream")
    lines = [
        f"# {streams} found. Paste this, name a destination, take away what you do",
        f"# not want.{_ABOUT_INDEXES if cursors else ''}",
        f"[pipelines.{connection}]",
        f"source = {_text(connection)}",
        'destination = "DESTINATION"',
        'schedule = "every 15m"',
    ]
    for stream in found:
        table = f"[pipelines.{connection}.streams.{_key(stream.name)}]"
        lines += ["", *(_stream_lines(table, stream) if cursors else [table])]
    return "\n".join(lines) + "\n"


def _stream_lines(table: str, stream: FoundStream) -> list[str]:
    rows = "" if stream.rows is None else f"   # about {count(stream.rows, 'row')}"
    lines = [f"{table}{rows}"]
    if stream.schema.key:
        lines.append(f"# key: {', '.join(stream.schema.key)} (from the source)")
    else:
        lines.append("# no key: give `key`, or read it with mode append or replace")
    if not stream.cursors:
        lines.append('mode = "replace"   # no column that could be a cursor: the whole table')
        return lines
    marked = [f"{c} (index)" if c in stream.indexed else c for c in stream.cursors]
    if len(marked) > _MOST:
        marked[_MOST:] = [f"and {len(marked) - _MOST} more"]
    lines.append(f"cursor = [{_text(stream.cursors[0])}]   # candidates: {', '.join(marked)}")
    if stream.cursors[0] in stream.schema.key:
        lines.append('# new rows only, not those that change: for them mode = "replace"')
    lines.append(f"mode = {_text('merge' if stream.schema.key else 'append')}")
    return lines


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _text(name)


def _text(value: str) -> str:
    # A TOML basic string and a JSON string agree on everything that names can hold, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
