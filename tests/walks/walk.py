"""One walk: a project with one stream, steps drawn from a seed, the destination compared after each
run that came to its end. Each step is what people and machines do to a project.
"""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from tests.crash.test_destination_kills import DUCKDB
from tests.walks.model import (
    Known,
    Reads,
    Row,
    There,
    answered,
    brought,
    difference,
    latest,
    numbers,
)
from tests.walks.sources import Folder, Source
from tests.walks.stage import KILLED, Said, Stage

_POINTS = {
    "any": (
        "daemon.claimed",
        "worker.before_seal",
        "staging.seal.files",
        "staging.seal.receipt",
        "staging.seal.done",
        "worker.sealed",
        "daemon.before_commit",
        "daemon.committed",
        "worker.committed",
        "worker.before_publish",
        "worker.published",
        "daemon.before_finish",
    ),
    "duckdb": DUCKDB,
    "parquet": (
        "parquet.publish.moved",
        "parquet.publish.renamed",
        "parquet.publish.marked",
        "parquet.publish.view",
        "parquet.publish.removed",
        "parquet.replace.built",
        "parquet.replace.exchanged",
        "parquet.replace.emptied",
    ),
}
_MODES = {"duckdb": ("merge", "append", "replace"), "parquet": ("append", "replace")}
_WORDS = ("", "a word", "Ünïcødé ☃", "it's", 'a "quoted" one', "two\nlines", "tab\there", "x" * 300)
_KINDS = ("integer", "real", "text", "date")
_PARTS = ("a", "b", "c/d=e", "Ü ☃", None)
_RETYPED = ("integer", "real", "text")
_TRIES = 8


class Wrong(AssertionError):
    """The walk found what may not be; ``str()`` has its whole course."""


class Walk:
    """The project of one seed, and the model beside it."""

    def __init__(
        self, seed: int, folder: Path, stage: Stage, source: Callable[[random.Random, Path], Source]
    ) -> None:
        self._chance = chance = random.Random(seed)
        self._seed, self._folder, self._stage = seed, folder, stage
        self.source = source(chance, folder)
        self._told: list[str] = []
        self._kind = chance.choice(("duckdb", "parquet"))
        self._mode = chance.choice(_MODES[self._kind])
        self._whole = self._mode == "merge" and chance.random() < 0.2
        self._policy = {
            "added": chance.choice(("add", "add", "hold", "ignore")),
            "dropped": chance.choice(("keep", "keep", "hold")),
            "retyped": chance.choice(("hold", "hold", "reject", "new_column")),
        }
        self._changed = chance.choice(("hold", "reread"))
        self._agreed = self._mode
        self._parted = False
        self._name, self._was, self._names = "p", "", 0
        self._table = "orders"
        self._ids, self._moment, self._columns_made = 0, 0, 0
        self._sure = True
        self._anew = False
        self.known = Known()
        self.tables = {self._table: There()}
        self._saved: dict[str, Any] = {}
        self._configure()
        self.insert()

    @property
    def _by_cursor(self) -> bool:
        return self._mode == "append" or (self._mode == "merge" and not self._whole)

    @property
    def there(self) -> There:
        return self.tables[self._table]

    @property
    def _is_lost(self) -> bool:
        """Catalog and destination are not at one batch, of which a person is to be asked."""
        return self.known.batch != self.there.batch

    # -- the project ------------------------------------------------------------------------------

    def _configure(self) -> None:
        path = "out.duckdb" if self._kind == "duckdb" else "lake"
        answers = ", ".join(f'{kind} = "{answer}"' for kind, answer in self._policy.items())
        reread = f'changed = "{self._changed}"'
        lines = [
            'project = "walk"',
            "[connections.src]",
            *self.source.connection,
            "[connections.dst]",
            f'connector = "{self._kind}"',
            f'path = "{path}"',
            f"[pipelines.{self._name}]",
            *([f'renamed_from = "{self._was}"'] if self._was else []),
            'source = "src"',
            'destination = "dst"',
            f'mode = "{self._mode}"',
            *(['cursor = ["at"]'] if self._by_cursor and self.source.has_cursor else []),
            'settle = "0s"',
            f"schema_changes = {{ {answers} }}",
            *([] if self.source.has_cursor or self._mode == "append" else [reread]),
            f"[pipelines.{self._name}.streams.orders]",
            *self.source.stream,
            *(['partition_by = "part"'] if self._parted else []),
            f'table = "{self._table}"',
        ]
        fresh = self._folder / "config.new"
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(self._folder / "config.toml")

    def _do(self, *words: str, kill_at: str = "") -> Said:
        return self._at_once(list(words), kill_at=kill_at)[0]

    def _at_once(self, *commands: list[str], kill_at: str = "") -> list[Said]:
        config = ["--config", str(self._folder / "config.toml")]
        said = self._stage.do(*([*config, *words] for words in commands), kill_at=kill_at)
        for words, one in zip(commands, said, strict=True):
            more = one.out[:200] if words[0] == "run" else ""
            self._tell(f"$ {' '.join(words)} {kill_at}-> {one.code} {one.err[:300]}{more}".strip())
            if "Traceback" in one.out + one.err:
                raise self._wrong(f"a traceback: {one.out}{one.err}")
        return said

    def _tell(self, text: str) -> None:
        self._told.append(text)

    def _wrong(self, text: str) -> Wrong:
        course = "\n".join(self._told)
        return Wrong(
            f"seed {self._seed}: {type(self.source).__name__} to {self._kind}, {self._mode} at last"
            f"\n{course}\n==> {text}"
        )

    # -- the source -------------------------------------------------------------------------------

    def _value(self, kind: str) -> Any:
        chance = self._chance
        if chance.random() < 0.1:
            return None
        if kind == "integer":
            return chance.choice((0, -1, chance.randrange(10**6)))
        if kind == "real":
            return chance.randrange(10**6) + 0.5
        if kind == "date":
            return f"2026-{chance.randint(1, 12):02}-{chance.randint(1, 28):02}"
        return f"w{chance.choice(_WORDS)}"

    def _fresh(self, id_: int) -> Row:
        values = {name: self._value(kind) for name, kind in self.source.columns.items()}
        return {"id": id_, "at": self._moment, **values, "part": self._chance.choice(_PARTS)}

    def insert(self) -> None:
        """Some rows, in one transaction; those of one moment share it."""
        self._moment += self._chance.randint(1, 5)
        rows = []
        for _ in range(self._chance.choice((1, 2, 5, 40, 100))):
            self._ids += 1
            self._moment += self._chance.choice((0, 0, 1))
            rows.append(self._fresh(self._ids))
        self._tell(f"insert {len(rows)} rows, at {rows[0]['at']} to {rows[-1]['at']}")
        self.source.write(rows)

    def update(self) -> None:
        if ids := self._some():
            self._moment += 1
            self._tell(f"update {ids}, at {self._moment}")
            self.source.write([self._fresh(id_) for id_ in ids])

    def delete(self) -> None:
        if ids := self._some():
            self._tell(f"delete {ids}")
            self.source.delete(ids)

    def _some(self) -> list[int]:
        there = self.source.ids()
        some = self._chance.sample(there, min(len(there), self._chance.choice((1, 3, 50))))
        return list(dict.fromkeys(some))

    def add_column(self) -> None:
        self._columns_made += 1
        name, kind = f"c{self._columns_made}", self._chance.choice(_KINDS)
        self._tell(f"add column {name} {kind}")
        self.source.add_column(name, kind)

    def drop_column(self) -> None:
        if names := [name for name in self.source.columns if name != "part"]:
            name = self._chance.choice(names)
            self._tell(f"drop column {name}")
            self.source.drop_column(name)

    def retype(self) -> None:
        columns = self.source.columns.items()
        names = [name for name, kind in columns if kind in _RETYPED and name != "part"]
        if names and self.source.has_cursor:
            name = self._chance.choice(names)
            old = self.source.columns[name]
            kind = self._chance.choice([k for k in _RETYPED if k != old])
            touched = self._chance.random() < 0.5
            self._moment += touched
            self._tell(f"column {name}: {old} to {kind}{', all rows stamped' * touched}")
            self.source.retype(name, kind, self._moment if touched else None)

    # -- runs -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until it comes to its end, answering what is asked as people might."""
        for _ in range(_TRIES):
            said = self._do("run", self._name)
            if said.code == 0:
                self._came_to_its_end()
                return
            if said.code == 3:
                self._answer()
            elif said.code != 4:
                raise self._wrong(f"the run failed: {said.out}{said.err}")
        raise self._wrong(f"no end after {_TRIES} runs")

    def run_killed(self) -> None:
        """A run that is killed on its way, or comes to its end before."""
        point = self._chance.choice((*_POINTS["any"], *_POINTS[self._kind]))
        nth = self._chance.choice((1, 1, 2, 3))
        said = self._do("run", self._name, kill_at=f"{point}:{nth}")
        if said.code == 0:
            self._came_to_its_end()
        elif said.code in (1, 3, KILLED):
            self._sure = False
        elif said.code != 4:
            raise self._wrong(f"the run ended as none does: {said.out}{said.err}")

    def run_twice(self) -> None:
        """Two at once: one of them, or both in turn."""
        command = ["run", self._name]
        codes = {said.code for said in self._at_once(command, command)}
        if not codes <= {0, 3, 4}:
            raise self._wrong("neither of two runs may fail")
        if 0 in codes and 3 not in codes:
            self._came_to_its_end()
        elif 0 in codes:
            self._sure = False

    def _came_to_its_end(self) -> None:
        if self._sure and self._is_lost and not self._anew:
            raise self._wrong("it went on as if nothing were lost")
        by_cursor = self._by_cursor or not self.source.has_cursor
        reads = Reads(self._mode, by_cursor, self._policy["added"], self._policy["retyped"])
        brought(self.source, self.known, self.there, reads, refresh=self._anew)
        self._anew, self._sure, self._agreed = False, True, self._mode
        self._compare()

    def _compare(self) -> None:
        if text := difference(self.there, self._found(), self.known.ignored):
            raise self._wrong(text)
        if self._kind == "parquet":
            shown = There(latest(self.there.rows))
            if text := difference(shown, self._viewed(), self.known.ignored):
                raise self._wrong(f"in the view: {text}")

    def _found(self) -> list[Row]:
        if self._kind == "parquet":
            files = f"'{self._folder}/lake/{self._table}/**/*.parquet'"
            how = "union_by_name = true, hive_partitioning = false"
            return self._select(None, f"select * from read_parquet({files}, {how})")
        found = self._select(self._folder / "out.duckdb", f'select * from "{self._table}"')
        return [{name: v for name, v in row.items() if name != "mine"} for row in found]

    def _viewed(self) -> list[Row]:
        view = self._folder / "lake" / self._table / "_view.sql"
        if not view.exists():
            return []
        return self._select(None, f'select * from "{self._table}"', view.read_text())

    def _select(self, path: Path | None, sql: str, first: str = "") -> list[Row]:
        try:
            with duckdb.connect(str(path or ":memory:"), read_only=path is not None) as db:
                if first:
                    db.execute(first)
                answer = db.execute(sql)
                names = [column[0] for column in answer.description or ()]
                rows = [dict(zip(names, row, strict=True)) for row in answer.fetchall()]
        except (duckdb.CatalogException, duckdb.IOException) as error:
            if not re.search("does not exist|No files found", str(error)):
                raise self._wrong(f"it cannot be read: {error}") from error
            self._tell(f"nothing there: {error}")
            return []
        return [
            self.source.seen({name: v for name, v in row.items() if name[0] != "_"}) for row in rows
        ]

    # -- what a person answers --------------------------------------------------------------------

    def _answer(self) -> None:
        said = self._do("why", f"{self._name}.orders", "--json")
        held = json.loads(said.out)["held"]
        if not held:
            raise self._wrong(f"held, and by nothing: {said.out}")
        (hold,) = held
        choices = [c for c in hold["choices"] if c not in ("retry", "cursor set")]
        if hold["kind"] == "definition" and self._mode != self._agreed:
            choices.append("retry")
        if not self._sure:
            choices = [c for c in choices if c != "cursor adopt"]
        if self._sure and hold["kind"] == "destination" and not self._is_lost:
            raise self._wrong(f"nothing was lost: {hold['reason']}")
        self._tell(f"held, {hold['kind']}: {hold['reason'][:300]} {hold['choices']}")
        if hold["kind"] == "empty_replace":
            self.insert()
            choices = ["retry"]
        if not choices:
            raise self._wrong("nothing to choose")
        choice = self._chance.choice(choices)
        if choice == "refresh" and not self.source.ids():
            self.insert()
        self._carry_out(choice, hold)

    def _carry_out(self, choice: str, hold: dict[str, Any]) -> None:
        if choice == "retry" and hold["kind"] == "definition":
            self._mode = self._agreed
            self._tell(f"mode {self._mode} again")
            self._configure()
        if choice in ("approve", "reject"):
            self._answered(approve=choice == "approve")
        verb, *options = choice.split(" --")
        stream = f"{self._name}.orders"
        said = self._do(*verb.split(), stream, *(f"--{option}" for option in options))
        if said.code != 0:
            raise self._wrong(f"a choice that cannot be carried out: {said.out}{said.err}")
        if choice == "refresh":
            self._anew = True
        elif choice.startswith("cursor rewind"):
            there = self.there
            there.batch = there.batch or next(numbers)  # a table without a marker gets one
            self.known.cursor, self.known.whole = there.cursor, there.whole
            self.known.batch = there.batch
        elif choice == "cursor adopt":
            self.known.batch = self.there.batch = next(numbers)

    def _answered(self, *, approve: bool) -> None:
        said = self._do("schema", "diff", f"{self._name}.orders", "--json")
        changes = json.loads(said.out)["changes"]
        asked = [c for c in changes if self._policy.get(c["kind"], "hold") == "hold"]
        self._tell(f"asked: {asked}")
        answered(asked, self.known, self._shown(), approve=approve)

    def _shown(self) -> dict[str, str]:
        everything = self._anew or not self._by_cursor
        return self.source.shown(self.source.after(-1 if everything else self.known.cursor))

    # -- what people do ---------------------------------------------------------------------------

    def refresh(self) -> None:
        if self.source.ids():
            # Refused where there is no stream yet, or while the lease of a killed run lasts.
            self._anew |= self._do("refresh", f"{self._name}.orders").code == 0
            self.run()

    def pause(self) -> None:
        self._do("pause", self._name)
        if self._do("run", self._name).code != 3:
            raise self._wrong("a paused pipeline ran")
        self._do("resume", self._name)

    def rename_pipeline(self) -> None:
        self._names += 1
        self._name, self._was = f"p{self._names}", self._name
        self._saved.pop("catalog", None)
        self._tell(f"renamed to {self._name}")
        self._configure()
        self.run()

    def change_table(self) -> None:
        self._table = self._chance.choice(("orders", "sales", "third"))
        self.tables.setdefault(self._table, There())
        self._tell(f"table {self._table}")
        self._configure()
        self.run()

    def change_policy(self) -> None:
        """What the config says comes before what a person answered."""
        self._policy["added"] = self._chance.choice(("add", "ignore"))
        self._policy["dropped"] = self._chance.choice(("keep", "hold"))
        self._tell(f"policy {self._policy}")
        self._configure()

    def change_file(self) -> None:
        """A file has other rows than when it was read, or the same by another name."""
        if isinstance(self.source, Folder) and (ids := self.source.ids()):
            how = self._chance.choice(("rewrite", "rename", "copy"))
            self._moment += how == "rewrite"
            id_ = self._chance.choice(ids)
            self._tell(f"{how} the file of {id_}, at {self._moment}")
            if how == "rewrite":
                self.source.rewrite(id_, self._fresh(id_))
            else:
                self.source.move(id_, copied=how == "copy")

    def change_mode(self) -> None:
        self._mode = self._chance.choice(_MODES[self._kind])
        self._tell(f"mode {self._mode}")
        self._configure()
        self.run()

    def change_layout(self) -> None:
        """Folders for each ``part``, or none, from the next batch on."""
        if self._kind == "parquet":
            self._parted = not self._parted
            self._tell(f"parted: {self._parted}")
            self._configure()

    def meddle(self) -> None:
        """Somebody's own statement in DuckDB's file."""
        if self._kind == "parquet" or not self.there.rows:
            return
        how = self._chance.choice(("drop", "delete", "add", "rename"))
        name = self._table
        others = [name for name in ("orders", "sales", "third") if name not in self.tables]
        if how == "rename" and others:
            self._table = self._chance.choice(others)
            self.tables[self._table] = self.tables.pop(name)
            self._meddled(f'alter table "{name}" rename to "{self._table}"')
            self._configure()
            self.there.batch = next(numbers)
        elif how == "add":
            self._meddled(f'alter table "{name}" add column if not exists mine integer default 7')
        else:
            self._meddled(f'drop table "{name}"' if how == "drop" else f'delete from "{name}"')
            self.tables[name] = There(batch=next(numbers))
        self.run()

    def _meddled(self, statement: str) -> None:
        self._tell(statement)
        with duckdb.connect(str(self._folder / "out.duckdb")) as db:
            db.execute(statement)

    # -- what is lost -----------------------------------------------------------------------------

    def save(self) -> None:
        """Copies of the destination and of the catalog, each for itself."""
        if self._chance.random() < 0.5:
            copied = self._copies("destination")
            shutil.rmtree(copied, ignore_errors=True)
            copied.mkdir()
            for path in self._destination():
                target = copied / path.name
                shutil.copytree(path, target) if path.is_dir() else shutil.copy2(path, target)
            self._saved["destination"] = copy.deepcopy(self.tables)
            self._tell("destination copied")
        else:
            backup = ("catalog", "backup", str(self._copies("catalog.db")), "--force")
            if self._do(*backup).code == 0:
                self._saved["catalog"] = copy.deepcopy(self.known)

    def _copies(self, name: str) -> Path:
        return self._folder / f"saved-{name}"

    def _destination(self) -> list[Path]:
        return [*self._folder.glob("out.duckdb*"), *self._folder.glob("lake")]

    def lose_destination(self) -> None:
        """It is put back from the copy, or gone."""
        for path in self._destination():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.tables = {self._table: There()}
        if saved := self._saved.get("destination"):
            self.tables.update(copy.deepcopy(saved))
            for path in self._copies("destination").iterdir():
                target = self._folder / path.name
                shutil.copytree(path, target) if path.is_dir() else shutil.copy2(path, target)
        self._tell(f"destination {'put back' if saved else 'gone'}")
        self.run()

    def lose_catalog(self) -> None:
        if saved := self._saved.get("catalog"):
            self._do("catalog", "restore", str(self._copies("catalog.db")))
            self.known = copy.deepcopy(saved)
            self.run()

    # -- the walk ---------------------------------------------------------------------------------

    def go(self, steps: int) -> None:
        """Raises ``Wrong``."""
        for _ in range(steps):
            self._next()()
        self.run()

    def _next(self) -> Callable[[], None]:
        weights: dict[Callable[[], None], int] = {
            self.run: 5,
            self.run_killed: 6,
            self.run_twice: 1,
            self.insert: 6,
            self.pause: 1,
            self.refresh: 1,
            self.lose_destination: 2,
            self.lose_catalog: 2,
        }
        if self._sure and not self.known.kinds and self._policy["added"] != "add":
            del weights[self.run_killed]  # its first batch would say which columns are new
        elif self._mode == "merge":
            weights[self.update] = 4  # whatever came of the row before, it comes again
        if self._sure:
            weights |= {
                self.update: 4,
                self.delete: 2,
                self.add_column: 2,
                self.drop_column: 1,
                self.retype: 2,
                self.rename_pipeline: 1,
                self.change_table: 1,
                self.change_mode: 1,
                self.change_policy: 1,
                self.change_file: 2,
                self.change_layout: 1,
                self.meddle: 2,
                self.save: 2,
            }
        (step,) = self._chance.choices(list(weights), list(weights.values()))
        return step
