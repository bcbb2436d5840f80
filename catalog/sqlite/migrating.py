"""The file's tables: whose they are, of which version, and how they are made and migrated."""

from __future__ import annotations

import hashlib
import secrets
from importlib import resources
from pathlib import Path

import apsw

from catalog.errors import CannotOpen

APPLICATION_ID = 0x68726563
"""Tells this file from any other SQLite database ("hrec")."""


def migrations() -> list[tuple[int, str]]:
    """Number and text of each migration, ascending."""
    folder = resources.files("catalog.sqlite") / "migrations"
    files = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return sorted((int(file.name[:4]), file.read_text("utf-8")) for file in files)


def migrate(db: apsw.Connection, path: Path, now: int) -> None:
    """Bring the file to this program's version, once, whichever process comes first.

    Whoever calls it closes ``db`` when it raises, and nothing has changed.
    """
    if is_current(db, path):
        return
    db.execute("begin immediate")
    if not is_current(db, path):
        _apply(db, now)
    db.execute("commit")


def is_current(db: apsw.Connection, path: Path) -> bool:
    """Whether the file is a catalog of this program's version; False: it is new, or older.

    Raises ``CannotOpen`` for one of another program, or of a newer version of this one.
    """
    newest = migrations()[-1][0]
    version: int = db.pragma("user_version")
    mark = db.pragma("application_id")
    has_tables = bool(db.execute("select 1 from sqlite_schema limit 1").fetchall())
    if mark != APPLICATION_ID and (has_tables or mark or version):
        raise CannotOpen(f"{path} is a database of another program; name another file")
    if mark == APPLICATION_ID and version < 1:
        raise CannotOpen(
            f"{path} is damaged: it is marked as a catalog and names no version of its schema "
            f"({version}); restore it from a backup"
        )
    if version > newest:
        raise CannotOpen(
            f"{path} was written by a newer version of this program (its schema is {version}, "
            f"this one knows {newest}); install that version, or restore an older backup"
        )
    if version:
        _refuse_other_tables(db, path, version)
    return version == newest


def _refuse_other_tables(db: apsw.Connection, path: Path, version: int) -> None:
    """Before a release a migration may change, and tables of one number are not all the same."""
    columns = {row[1] for row in db.execute("pragma table_info(meta)")}
    known = "made_by" in columns and db.execute("select made_by from meta").fetchall()
    if known == [] or not columns:  # damaged: that is for who reads it to say
        return
    if known != [(_made_by(version),)]:
        raise CannotOpen(
            f"{path} was made by this program as it was before a release, with other tables; use "
            "it with the program that made it, or move it away: a new catalog is made then, and "
            "streams that have rows already are held with what can be done"
        )


def _made_by(version: int) -> str:
    texts = "".join(text for number, text in migrations() if number <= version)
    return hashlib.sha256(texts.encode()).hexdigest()


def refuse_nothing(db: apsw.Connection, path: Path) -> None:
    """Raise ``CannotOpen`` for a database in which nothing was ever made."""
    if db.pragma("application_id") != APPLICATION_ID:
        raise CannotOpen(f"{path} is an empty file, and no catalog")


def _apply(db: apsw.Connection, now: int) -> None:
    steps, version = migrations(), db.pragma("user_version")
    for number, text in steps:
        if number > version:
            db.execute(text).fetchall()
    if not version:
        db.execute("insert into meta values (1, ?, 0, ?, '')", (secrets.token_hex(16), now))
    db.execute("update meta set made_by = ?", (_made_by(steps[-1][0]),))
    db.pragma("application_id", APPLICATION_ID)
    db.pragma("user_version", steps[-1][0])
