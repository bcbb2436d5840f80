"""What a walk reads from: a table in SQLite or PostgreSQL, or a folder of files.

Each takes the same changes, tells which of its rows lie behind a place, and knows no more of the
program than its config.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from tests.servers import PostgresServer
from tests.walks.model import Row

_START = datetime(2026, 1, 1, tzinfo=UTC)


class Source(Protocol):
    """Rows have an ``id``, and in ``at`` the moment they were written: the place of a cursor."""

    columns: dict[str, str]
    """By name of each column that a person added its kind: integer, real, text or date."""
    has_cursor: bool

    @property
    def connection(self) -> Sequence[str]:
        """Lines of the config, as those of the stream."""

    @property
    def stream(self) -> Sequence[str]: ...

    def after(self, at: int) -> list[Row]:
        """All rows that were written later, in that order."""

    def shown(self, rows: list[Row]) -> dict[str, str]:
        """The columns that a read of these rows shows, each with its kind."""

    def whole(self) -> object:
        """What tells a read of all from an earlier one; None: each counts as another."""

    def ids(self) -> list[int]: ...

    def write(self, rows: list[Row]) -> None:
        """New rows, or others in the place of those with their ids."""

    def delete(self, ids: Sequence[int]) -> None: ...

    def add_column(self, name: str, kind: str) -> None: ...

    def drop_column(self, name: str) -> None: ...

    def retype(self, name: str, kind: str, at: int | None) -> None:
        """``at``: every row was written anew then; None: none was."""

    def seen(self, row: Row) -> Row:
        """A row of the destination, its ``at`` as the model has it."""


class _Table:
    """The rows of a table, by id, and what a change does to them."""

    has_cursor = True
    stream: Sequence[str] = ()
    connection: Sequence[str]
    _types: Mapping[str, str] = {kind: kind for kind in ("integer", "real", "text", "date")}
    """What the database calls each kind."""

    def __init__(self, *, by_time: bool) -> None:
        self.columns: dict[str, str] = {"part": "text", "amount": "integer"}
        self.rows: dict[int, Row] = {}
        self._by_time = by_time

    def after(self, at: int) -> list[Row]:
        return sorted((r for r in self.rows.values() if r["at"] > at), key=lambda row: row["at"])

    def shown(self, rows: list[Row]) -> dict[str, str]:
        return self.columns

    def whole(self) -> object:
        return None

    def ids(self) -> list[int]:
        return list(self.rows)

    def _place(self, at: int) -> Any:
        return _START + timedelta(seconds=at) if self._by_time else at

    def seen(self, row: Row) -> Row:
        at = row["at"]
        return {**row, "at": self._moment(at)} if self._by_time else row

    def _moment(self, at: datetime) -> int:
        return int((at.replace(tzinfo=UTC) - _START).total_seconds())

    def _do(self, *statements: str | tuple[str, tuple[Any, ...]]) -> None:
        """Carry them out, in one transaction."""
        raise NotImplementedError

    def add_column(self, name: str, kind: str) -> None:
        self.columns[name] = kind
        for row in self.rows.values():
            row[name] = None
        self._do(f'alter table orders add column "{name}" {self._types[kind]}')

    def drop_column(self, name: str) -> None:
        del self.columns[name]
        for row in self.rows.values():
            del row[name]
        self._do(f'alter table orders drop column "{name}"')

    def _changed(self, name: str, kind: str, at: int | None) -> None:
        self.columns[name] = kind
        for row in self.rows.values():
            row[name] = _converted(row[name], kind)
            row["at"] = row["at"] if at is None else at


class Sqlite(_Table):
    """A table in a file. To change a type it is made anew, as SQLite has it."""

    connection = ('connector = "sql"', 'url = "sqlite:///source.db"')

    def __init__(self, folder: Path, *, by_time: bool) -> None:
        super().__init__(by_time=by_time)
        self._path = folder / "source.db"
        self._do("pragma journal_mode = wal", *self._made())

    def _do(self, *statements: str | tuple[str, tuple[Any, ...]]) -> None:
        with sqlite3.connect(self._path) as db:
            for one in statements:
                db.execute(*((one,) if isinstance(one, str) else one))
        db.close()

    def _made(self) -> tuple[str, str]:
        at = "timestamp" if self._by_time else "integer"
        more = "".join(f', "{name}" {kind}' for name, kind in self.columns.items())
        table = f"create table orders (id integer primary key, at {at} not null{more})"
        return table, "create index by_at on orders (at)"

    def _row(self, row: Row) -> tuple[str, tuple[Any, ...]]:
        at = self._place(row["at"])
        named = {**row, "at": f"{at:%F %T}" if self._by_time else at}
        names, marks = ", ".join(f'"{n}"' for n in named), ", ".join("?" for _ in named)
        return f"insert or replace into orders ({names}) values ({marks})", tuple(named.values())

    def write(self, rows: list[Row]) -> None:
        self.rows.update({row["id"]: row for row in rows})
        self._do(*(self._row(row) for row in rows))

    def delete(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            del self.rows[id_]
        self._do(*(("delete from orders where id = ?", (id_,)) for id_ in ids))

    def retype(self, name: str, kind: str, at: int | None) -> None:
        self._changed(name, kind, at)
        self._do("drop table orders", *self._made(), *(self._row(r) for r in self.rows.values()))


_USING = {
    "integer": 'trunc("{0}"::numeric)::bigint',
    "real": '"{0}"::double precision',
    "text": '"{0}"::text',
}


class Postgres(_Table):
    """A table of a database of its own, changed by one session at a time, and stamped by the clock:
    times are read up to now, and not to the newest row."""

    _types: Mapping[str, str] = {
        "integer": "bigint",
        "real": "double precision",
        "text": "text",
        "date": "date",
    }

    def __init__(self, server: PostgresServer, database: str, *, by_time: bool) -> None:
        super().__init__(by_time=by_time)
        self._times: dict[int, datetime] = {}
        self._server, self._database = server, server.new_database(database)
        self.connection = ('connector = "sql"', f'url = "{server.url(database=database)}"')
        at = "timestamptz" if by_time else "bigint"
        self._do(
            f"create table orders (id bigint primary key, at {at} not null, part text)",
            "alter table orders add column amount bigint",
            "create index by_at on orders (at)",
        )

    def _place(self, at: int) -> Any:
        return self._times.setdefault(at, datetime.now(UTC)) if self._by_time else at

    def _moment(self, at: datetime) -> int:
        return next(moment for moment, time in self._times.items() if time == at)

    def _do(self, *statements: str | tuple[str, tuple[Any, ...]]) -> None:
        with self._server.connect(database=self._database) as db, db.transaction():
            for one in statements:
                db.execute(*((one,) if isinstance(one, str) else one))

    def write(self, rows: list[Row]) -> None:
        self.rows.update({row["id"]: row for row in rows})
        for_all = []
        for row in rows:
            named = {**row, "at": self._place(row["at"])}
            names, marks = ", ".join(f'"{n}"' for n in named), ", ".join("%s" for _ in named)
            sets = ", ".join(f'"{n}" = excluded."{n}"' for n in named)
            text = f"insert into orders ({names}) values ({marks}) on conflict (id) do update set "
            for_all.append((text + sets, tuple(named.values())))
        self._do(*for_all)

    def delete(self, ids: Sequence[int]) -> None:
        for id_ in ids:
            del self.rows[id_]
        self._do(("delete from orders where id = any(%s)", (list(ids),)))

    def retype(self, name: str, kind: str, at: int | None) -> None:
        old = self.columns[name]
        self._changed(name, kind, at)
        using = _USING[kind].format(name)
        if old == "text":  # what is no number becomes NULL
            using = f"case when \"{name}\" ~ '^-?[0-9.]+$' then {using} end"
        self._do(
            f'alter table orders alter column "{name}" type {self._types[kind]} using {using}',
            *([] if at is None else [("update orders set at = %s", (self._place(at),))]),
        )


_A_VALUE = {"integer": 7, "real": 7.5, "text": "w"}


class Folder:
    """Files of one format, each written once. Their columns come and go, and keep their type."""

    has_cursor = False
    connection: Sequence[str] = ('connector = "files"', 'path = "inbox"')

    def __init__(self, folder: Path, form: str) -> None:
        self._folder, self._form = folder / "inbox", form
        self._folder.mkdir()
        self.stream: Sequence[str] = (f'path = "*.{form}"', 'key = ["id"]')
        if form == "csv":
            self.stream = (*self.stream, 'columns = { id = "int64", at = "int64" }')
        amount = "text" if form == "csv" else "integer"
        self.columns: dict[str, str] = {"part": "text", "amount": amount}
        self._kinds = dict(self.columns)
        """Those of all columns that there have been."""
        self._files: dict[int, list[Row]] = {}
        """By their moment, as their names are."""
        self._names: dict[int, str] = {}
        self._copies: dict[int, list[Path]] = {}
        self._moves = 0

    def after(self, at: int) -> list[Row]:
        return [row for moment in sorted(self._files) if moment > at for row in self._files[moment]]

    def shown(self, rows: list[Row]) -> dict[str, str]:
        """Those of the files; in JSON lines such as have a value."""
        told = [row.items() for row in rows]
        names = {n for row in told for n, v in row if v is not None or self._form != "jsonl"}
        return {name: kind for name, kind in self._kinds.items() if name in names}

    def whole(self) -> object:
        return [(at, len(self._copies.get(at, []))) for at in self._files]

    def ids(self) -> list[int]:
        return [row["id"] for row in self.after(-1)]

    def seen(self, row: Row) -> Row:
        return row

    def write(self, rows: list[Row]) -> None:
        """A file of its own, whose rows all have its moment."""
        at = max(row["at"] for row in rows)
        self._put(f"{at:06}.{self._form}", at, rows)

    def rewrite(self, id_: int, row: Row) -> None:
        """The file of this row has another one in its place, and is of that one's moment."""
        at, name = self._file_of(id_)
        self._remove(self._copies.pop(at, []))
        rows = [row if old["id"] == id_ else old for old in self._files.pop(at)]
        del self._names[at]
        self._put(name, row["at"], rows)

    def move(self, id_: int, *, copied: bool) -> None:
        """The file of this row has another name, or two."""
        at, name = self._file_of(id_)
        self._moves += 1
        path, other = self._folder / name, self._folder / f"{self._moves}-{name}"
        if copied:
            shutil.copy2(path, other)
            self._copies.setdefault(at, []).append(other)
        else:
            path.rename(other)
            self._names[at] = other.name

    def _file_of(self, id_: int) -> tuple[int, str]:
        at = next(at for at, rows in self._files.items() if any(r["id"] == id_ for r in rows))
        return at, self._names[at]

    def _put(self, name: str, at: int, rows: list[Row]) -> None:
        for row in rows:
            row["at"] = at
        for column in rows[0]:  # what shows no value has no kind yet, and that is another story
            if all(row.get(column) is None for row in rows):
                rows[0][column] = _A_VALUE[self._kinds[column]]
        self._files[at], self._names[at] = rows, name
        path = self._folder / name
        part = self._folder / "part"
        names = ["id", "at", *{n: 0 for row in rows for n in row if n not in ("id", "at")}]
        if self._form == "csv":
            with part.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(names)
                writer.writerows([_csv(row.get(name)) for name in names] for row in rows)
        elif self._form == "jsonl":
            part.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            arrow = {"integer": pa.int64(), "real": pa.float64(), "text": pa.string()}
            schema = pa.schema([(n, arrow[self._kinds.get(n, "integer")]) for n in names])
            pq.write_table(pa.Table.from_pylist(rows, schema), part)
        moment = _START.timestamp() + at
        os.utime(part, (moment, moment))
        part.rename(path)

    def delete(self, ids: Iterable[int]) -> None:
        """The file of the first of these rows goes."""
        (id_, *_) = ids
        at, name = self._file_of(id_)
        del self._files[at], self._names[at]
        self._remove([self._folder / name, *self._copies.pop(at, [])])

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink()

    def add_column(self, name: str, kind: str) -> None:
        """From the next file on."""
        kind = "text" if self._form == "csv" or kind == "date" else kind
        self.columns[name] = self._kinds[name] = kind

    def drop_column(self, name: str) -> None:
        del self.columns[name]

    def retype(self, name: str, kind: str, at: int | None) -> None:
        """Not of files: their columns keep what they are."""


def _csv(value: Any) -> Any:
    return "" if value is None else value


def _converted(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "text":
        return str(value)
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if kind == "integer" else number
