"""Every hold, from its cause through each of its choices to equality again (rule 5, B4, C4, F).

Commands are typed as a person would; runs are real, with a worker process of their own. The rest of
the table of holds, choices and destinations: ``pytest -m slow tests/e2e/test_holds.py``.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from reconciler.cli.main import main
from tests.crash.test_kill_points import _DUCKDB, _PARQUET, _row
from tests.e2e.world import World

_Said = Callable[..., str]
_REWIND = "cursor rewind --to-destination"


def _quick(names: str, table: list[Any], quick: list[Any]) -> pytest.MarkDecorator:
    """All of the table; what is not ``quick`` is no part of the default run."""
    cases = [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in quick else [pytest.mark.slow],
        )
        for case in table
    ]
    return pytest.mark.parametrize(names.split(", "), cases)


def _destinations(quick: str) -> pytest.MarkDecorator:
    return _quick("destination", ["duckdb", "parquet"], [quick])


def _choices(
    *quick: tuple[str, str], leaving_out: tuple[str, str] | None = None
) -> pytest.MarkDecorator:
    table = [
        (destination, choice)
        for destination in ("duckdb", "parquet")
        for choice in ("refresh", "cursor adopt", _REWIND)
        if (destination, choice) != leaving_out
    ]
    return _quick("destination, choice", table, list(quick))


class Project(World):
    """A world whose commands are carried out in this process, for speed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(folder)
        self._capsys = capsys
        self.destination = "duckdb"

    def write_config(self, body: str, *, lease_ttl: str = "60s", grace: str = "2s") -> None:
        """No lease runs out, however busy the machine is."""
        super().write_config(body, lease_ttl=lease_ttl, grace=grace)

    def loads_into(self, destination: str, edit: Callable[[str], str] = lambda text: text) -> None:
        self.destination = destination
        self.write_config(edit(_DUCKDB if destination == "duckdb" else _PARQUET))

    def do(self, *args: str, code: int = 0, config: Path | None = None) -> str:
        """Carry out one command; what it said, on stderr too."""
        self._capsys.readouterr()
        found = main(["--config", str(config or self.config), *args])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        assert found == code, f"exit {found} of {args}:\n{out}\n{err}"
        return out + err

    def add(self, first: int, last: int, name: str = "") -> None:
        self.fill("orders", (_row(n, name) for n in range(first, last)))

    def change(self, statement: str) -> None:
        """Carry out a statement at the source."""
        with sqlite3.connect(self.source) as db:
            db.execute(statement)
        db.close()

    def rows(self) -> list[tuple[Any, ...]]:
        if self.destination == "duckdb":
            return self.duckdb_rows("orders")
        return self.parquet_rows("orders")

    def there(self) -> Path:
        """The destination, on disk."""
        return self.folder / ("out.duckdb" if self.destination == "duckdb" else "lake")

    def state_file(self) -> Path:
        return self.folder / "state" / "catalog.db"

    def held(self, stream: str = "p.orders") -> dict[str, Any]:
        """The stream's hold; the run that meets it ends with code 3."""
        pipeline, name = stream.split(".")
        self.do("run", pipeline, code=3)
        (hold,) = json.loads(self.do("why", stream, "--json"))["held"]
        assert hold["stream"] == name
        return dict(hold)

    def answer(self, choice: str, stream: str = "p.orders") -> None:
        """Type one of a hold's choices, then run."""
        verb, *options = choice.split(" --")
        self.do(*verb.split(), stream, *(f"--{option}" for option in options))
        self.do("run", stream.partition(".")[0])

    def equal(self) -> bool:
        return self.rows() == self.source_rows("orders")


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Project]:
    project = Project(tmp_path, capsys)
    yield project
    project.close()


def _copy(path: Path, to: Path) -> None:
    for found in path.parent.glob(f"{path.name}*"):
        target = to / found.name
        shutil.copytree(found, target) if found.is_dir() else shutil.copy2(found, target)


def _remove(path: Path) -> None:
    for found in path.parent.glob(f"{path.name}*"):
        shutil.rmtree(found) if found.is_dir() else found.unlink()


def _two_batches(project: Project, destination: str) -> None:
    """Two runs of fifty rows; copies of destination and catalog as they were after the first."""
    project.loads_into(destination)
    project.add(0, 50)
    project.do("run", "p")
    for what in ("destination", "catalog"):
        (project.folder / f"old-{what}").mkdir()
    _copy(project.there(), project.folder / "old-destination")
    _copy(project.state_file(), project.folder / "old-catalog")
    project.add(50, 100)
    project.do("run", "p")
    assert project.equal()


def _put_back(project: Project, what: str) -> None:
    current = project.there() if what == "destination" else project.state_file()
    _remove(current)
    _copy(project.folder / f"old-{what}" / current.name, current.parent)


def _later_rows_arrive(project: Project) -> None:
    project.add(200, 210)
    project.do("run", "p")
    assert {row[0] for row in project.rows()} >= set(range(200, 210))
    assert "No damage" in project.do("catalog", "check")


@_choices(("duckdb", _REWIND), ("parquet", "cursor adopt"))
def test_a_destination_restored_from_an_older_copy_is_held(
    project: Project, destination: str, choice: str
) -> None:
    _two_batches(project, destination)
    _put_back(project, "destination")
    hold = project.held()
    assert hold["kind"] == "destination"
    assert choice in hold["choices"]
    project.answer(choice)
    if choice == "cursor adopt":
        assert len(project.rows()) == 50, "adopted as it is"
    else:
        assert project.equal()
    _later_rows_arrive(project)


def test_a_lake_whose_old_files_were_removed_is_taken_as_it_is(project: Project) -> None:
    _two_batches(project, "parquet")
    folder = project.there() / "orders"
    old, _ = sorted(folder.glob("*.parquet"))
    old.unlink()
    assert "cursor adopt" in project.do("check", code=1)
    project.answer("cursor adopt")
    _later_rows_arrive(project)
    assert {row[0] for row in project.rows()} == {*range(50, 100), *range(200, 210)}
    view = (folder / "_view.sql").read_text()
    with duckdb.connect() as db:
        db.execute(view)
        assert db.execute("SELECT count(*) FROM orders").fetchall() == [(60,)]
    db.close()


@pytest.mark.parametrize("rewound", [False, True], ids=["at once", "after another answer"])
def test_a_table_renamed_by_hand_goes_on_and_its_rows_are_there_once(
    project: Project, *, rewound: bool
) -> None:
    project.loads_into("duckdb", lambda text: text.replace('"merge"', '"append"'))
    project.add(0, 50)
    project.do("run", "p")
    text = project.config.read_text()
    project.config.write_text(text.replace("streams.orders]", 'streams.orders]\ntable = "sales"'))
    if rewound:
        assert project.held()["choices"][0] == _REWIND, "as long as there is no such table"
        project.do("cursor", "rewind", "p.orders", "--to-destination")
    with duckdb.connect(str(project.there())) as db:
        db.execute("ALTER TABLE orders RENAME TO sales")
    db.close()
    hold = project.held()
    assert "a table 'sales'" in hold["reason"]
    assert hold["choices"] == ["retry", "cursor adopt"]
    if rewound:
        project.do("cursor", "rewind", "p.orders", "--to-batch", "1")
        assert project.held()["choices"] == hold["choices"]
    project.add(50, 60)
    project.answer("cursor adopt")
    assert project.duckdb_rows("sales") == project.source_rows("orders")


@_quick("destination", ["duckdb", "parquet"], ["parquet"])
def test_an_answer_that_another_restore_overtook_is_asked_for_again(
    project: Project, destination: str
) -> None:
    _two_batches(project, destination)
    newest = project.folder / "newest"
    newest.mkdir()
    _copy(project.there(), newest)
    _put_back(project, "destination")
    project.held()
    project.do("cursor", "rewind", "p.orders", "--to-destination")
    _remove(project.there())
    _copy(newest / project.there().name, project.folder)
    hold = project.held()
    assert hold["reason"].endswith(
        "changed since a person said what is to become of it: it is at batch 2 now"
    )
    project.answer(_REWIND)
    assert project.equal()
    _later_rows_arrive(project)


_FILES = """
[connections.src]
connector = "files"
path = "in"
[connections.dst]
connector = "parquet"
path = "lake"
[pipelines.p]
source = "src"
destination = "dst"
[pipelines.p.streams.orders]
path = "*.csv"
settle = "0s"
"""


class Inbox(Project):
    """A project that appends what comes into a folder."""

    def put(self, name: str, *ids: int) -> None:
        (self.folder / "in").mkdir(exist_ok=True)
        lines = [f"{n},row {n}" for n in ids]
        (self.folder / "in" / name).write_text("\n".join(["id,name", *lines, ""]))

    def ids(self) -> list[int]:
        return [int(row[0]) for row in self.parquet_rows("orders")]

    def two_files(self) -> None:
        """Two runs of a file each, and copies as ``_two_batches`` makes them."""
        self.destination = "parquet"
        self.write_config(_FILES)
        self.put("a.csv", 1, 2)
        self.do("run", "p")
        for what, path in (("destination", self.there()), ("catalog", self.state_file())):
            (self.folder / f"old-{what}").mkdir()
            _copy(path, self.folder / f"old-{what}")
        self.put("b.csv", 3, 4)
        self.do("run", "p")
        assert self.ids() == [1, 2, 3, 4]


@pytest.fixture
def inbox(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Inbox]:
    inbox = Inbox(tmp_path, capsys)
    yield inbox
    inbox.close()


def test_files_that_a_restored_destination_lacks_are_read_again_and_no_others(
    inbox: Inbox,
) -> None:
    inbox.two_files()
    (inbox.folder / "in" / "a.csv").rename(inbox.folder / "in" / "moved.csv")
    inbox.do("run", "p")
    _put_back(inbox, "destination")
    assert _REWIND in inbox.held()["choices"]
    inbox.answer(_REWIND)
    assert inbox.ids() == [1, 2, 3, 4]
    # What was read up to batch 1 is not what the ledger would say of it now.
    _put_back(inbox, "destination")
    assert inbox.held()["choices"] == ["refresh", "cursor adopt"]
    inbox.do("cursor", "rewind", "p.orders", "--to-destination", code=3)
    inbox.do("cursor", "set", "p.orders", "1", code=2)
    inbox.answer("refresh")
    assert inbox.ids() == [1, 2, 3, 4]


def test_files_that_a_restored_catalog_does_not_know_are_not_read_twice(inbox: Inbox) -> None:
    inbox.two_files()
    _put_back(inbox, "catalog")
    hold = inbox.held()
    assert hold["choices"] == ["refresh"]
    assert "move those away" in hold["reason"]
    inbox.answer("refresh")
    assert inbox.ids() == [1, 2, 3, 4]


@_quick("destination", ["duckdb", "parquet"], ["parquet"])
def test_a_catalog_and_a_destination_that_went_different_ways_are_not_taken_to_agree(
    project: Project, destination: str
) -> None:
    """Both are at batch 2, each at its own."""
    backup = str(project.folder / "backup.db")
    _two_batches(project, destination)
    newest = project.folder / "newest"
    newest.mkdir()
    _copy(project.there(), newest)
    _put_back(project, "catalog")
    project.do("catalog", "backup", backup)
    project.do("catalog", "restore", backup)
    _put_back(project, "destination")
    project.add(100, 120)
    project.do("run", "p")
    assert project.equal()
    _remove(project.there())
    _copy(newest / project.there().name, project.folder)
    assert "went different ways" in project.held()["reason"]
    project.answer(_REWIND)
    assert project.equal()
    _later_rows_arrive(project)


@_choices(
    ("duckdb", "cursor adopt"), ("parquet", "refresh"), leaving_out=("parquet", "cursor adopt")
)
def test_a_catalog_restored_from_an_older_copy_is_held(
    project: Project, destination: str, choice: str
) -> None:
    """Adopting is no choice where rows are appended: those there already would be there twice."""
    _two_batches(project, destination)
    _put_back(project, "catalog")
    hold = project.held()
    assert hold["kind"] == "destination"
    assert choice in hold["choices"]
    project.answer(choice)
    assert project.equal()
    _later_rows_arrive(project)


@_choices(("duckdb", "refresh"), ("parquet", _REWIND))
def test_a_destination_that_is_gone_is_held(
    project: Project, destination: str, choice: str
) -> None:
    _two_batches(project, destination)
    _remove(project.there())
    hold = project.held()
    assert hold["kind"] == "destination"
    assert choice in hold["choices"]
    project.answer(choice)
    if choice == "cursor adopt":
        assert project.rows() == [], "adopted as it is"
    else:
        assert project.equal()
    _later_rows_arrive(project)


def _committed_and_not_published(project: Project, destination: str) -> None:
    """A first batch is there; the second is sealed and committed, and then its worker dies."""
    project.loads_into(destination)
    project.add(0, 50)
    project.do("run", "p")
    project.add(50, 100)
    project.cli("run", "p", code=1, RECONCILER_TEST_KILL_AT="worker.committed")


@_destinations("duckdb")
def test_a_destination_that_is_gone_with_a_batch_unpublished_can_be_refreshed(
    project: Project, destination: str
) -> None:
    _committed_and_not_published(project, destination)
    table = project.there() if destination == "duckdb" else project.there() / "orders"
    table.unlink() if destination == "duckdb" else shutil.rmtree(table)
    hold = project.held()
    assert (hold["kind"], hold["choices"]) == ("destination", ["refresh"])
    project.do("cursor", "adopt", "p.orders", code=1)
    project.answer("refresh")
    assert project.equal()
    _later_rows_arrive(project)


@_destinations("parquet")
def test_a_batch_that_was_lost_before_it_was_published_can_be_read_again(
    project: Project, destination: str
) -> None:
    _committed_and_not_published(project, destination)
    for staged in project.folder.rglob("*.staged"):
        staged.unlink()
    hold = project.held()
    assert (hold["kind"], hold["choices"]) == ("lost_batch", ["refresh"])
    project.answer("refresh")
    assert project.equal()
    _later_rows_arrive(project)


@pytest.mark.slow
def test_a_catalog_restored_with_a_batch_unpublished_has_every_choice(project: Project) -> None:
    _committed_and_not_published(project, "duckdb")
    (project.folder / "old-catalog").mkdir()
    _copy(project.state_file(), project.folder / "old-catalog")
    for first in (100, 150):
        project.do("run", "p")
        project.add(first, first + 50)
    project.do("run", "p")
    _put_back(project, "catalog")
    assert _REWIND in project.held()["choices"]
    project.answer(_REWIND)
    assert project.equal()
    _later_rows_arrive(project)


@_quick("how", ["drop table orders", "delete from orders"], ["delete from orders"])
def test_a_table_emptied_in_the_database_is_held(project: Project, how: str) -> None:
    _two_batches(project, "duckdb")
    with duckdb.connect(str(project.there())) as db:
        db.execute(how)
    assert project.held()["kind"] == "destination"
    project.answer("refresh")
    assert project.equal()
    _later_rows_arrive(project)


def _edit(project: Project, old: str, new: str) -> None:
    text = project.config.read_text()
    assert old in text
    project.config.write_text(text.replace(old, new))


def _renamed(project: Project, destination: str) -> dict[str, Any]:
    """Another pipeline finds the table of one that is not in the config any more."""
    project.loads_into(destination)
    project.add(0, 50)
    project.do("run", "p")
    _edit(project, "pipelines.p", "pipelines.q")
    hold = project.held("q.orders")
    assert "'p'" in hold["reason"]
    return hold


@_quick(
    "destination, choice",
    [(where, choice) for where in ("duckdb", "parquet") for choice in (_REWIND, "cursor adopt")],
    [("duckdb", _REWIND)],
)
def test_a_table_of_another_pipeline_is_held_and_can_be_taken_over(
    project: Project, destination: str, choice: str
) -> None:
    assert choice in _renamed(project, destination)["choices"]
    project.answer(choice, "q.orders")
    if destination == "duckdb" or choice != "cursor adopt":
        assert project.equal()
    project.add(50, 60)
    project.do("run", "q")
    assert set(project.rows()) == set(project.source_rows("orders"))
    _edit(project, "pipelines.q", "pipelines.p")
    assert "'q'" in project.held("p.orders")["reason"], "now it is the other's"


@_destinations("parquet")
def test_a_table_of_another_pipeline_is_left_alone_under_another_name(
    project: Project, destination: str
) -> None:
    assert "retry" in _renamed(project, destination)["choices"]
    project.config.write_text(project.config.read_text() + 'table = "mine"\n')
    project.answer("retry", "q.orders")
    found = project.duckdb_rows("mine") if destination == "duckdb" else project.parquet_rows("mine")
    assert found == project.rows() == project.source_rows("orders")


def _make_foreign(project: Project) -> None:
    if project.destination == "duckdb":
        with duckdb.connect(str(project.there())) as db:
            db.execute("create table orders (id bigint, name varchar)")
            db.execute("insert into orders values (7, 'older'), (1000, 'theirs')")
        return
    folder = project.there() / "orders"
    folder.mkdir(parents=True)
    duckdb.sql("select 1000 as id, 'theirs' as name").write_parquet(str(folder / "x.parquet"))


@_destinations("duckdb")
def test_a_table_without_a_marker_is_held_and_can_be_adopted(
    project: Project, destination: str
) -> None:
    project.loads_into(destination)
    _make_foreign(project)
    project.add(0, 50)
    hold = project.held()
    assert "cursor adopt" in hold["choices"]
    assert project.held() == hold
    project.answer("cursor adopt")
    assert project.rows() == [*project.source_rows("orders"), (1000, "theirs")]
    _later_rows_arrive(project)


@_destinations("parquet")
def test_a_table_without_a_marker_can_be_moved_away(project: Project, destination: str) -> None:
    project.loads_into(destination)
    _make_foreign(project)
    project.add(0, 50)
    assert "retry" in project.held()["choices"]
    _remove(project.there())
    project.answer("retry")
    assert project.equal()


_AT = "2026-01-01 00:00:49"
_BY_ID = ('["updated_at"]', '["id"]')
_APPENDED = ('mode = "merge"', 'mode = "append"')
_BY_NAME = ("streams.orders]", 'streams.orders]\nkey = ["name"]')
_QUERY = 'streams.orders]\nkey = ["id"]\nquery = "select * from orders"'


@_quick(
    "old, new, choice, place",
    [
        (*_BY_ID, "refresh", ""),
        (*_BY_ID, "cursor set", "49"),
        (*_APPENDED, "refresh", ""),
        (*_APPENDED, "cursor set", _AT),
        (*_BY_NAME, "refresh", ""),
        (*_BY_NAME, "cursor set", _AT),
        ("streams.orders]", _QUERY, "refresh", ""),
        ("streams.orders]", _QUERY, "cursor set", _AT),
    ],
    [(*_BY_ID, "cursor set", "49"), (*_BY_NAME, "refresh", "")],
)
def test_a_changed_definition_is_held(
    project: Project, old: str, new: str, choice: str, place: str
) -> None:
    project.loads_into("duckdb")
    project.add(0, 50)
    project.do("run", "p")
    _edit(project, old, new)
    hold = project.held()
    assert hold["kind"] == "definition"
    assert choice in hold["choices"]
    project.do(*choice.split(), "p.orders", *([place] if place else []))
    project.add(50, 60)
    if "name" in new:  # the key of the table is a question of its own
        assert project.held()["kind"] == "schema"
        project.do("approve", "p.orders")
    project.do("run", "p")
    assert project.equal()
    _later_rows_arrive(project)
    assert project.equal()


def test_a_changed_definition_that_was_put_back_goes_on_where_it_stood(project: Project) -> None:
    project.loads_into("duckdb")
    project.add(0, 50)
    project.do("run", "p")
    _edit(project, *_BY_ID)
    assert "retry" in project.held()["choices"]
    project.do("retry", "p.orders")
    assert project.held()["kind"] == "definition", "nothing was put back yet"
    _edit(project, *reversed(_BY_ID))
    project.add(50, 60)
    project.answer("retry")
    assert project.equal()
    assert json.loads(project.do("runs", "p", "--json"))[0]["rows"] == 10, "and no more was read"


def test_a_changed_definition_without_a_cursor_is_answered_by_reading_again(
    project: Project,
) -> None:
    project.loads_into("duckdb", lambda text: text.replace('cursor = ["updated_at"]\n', ""))
    project.add(0, 50)
    project.do("run", "p")
    _edit(project, "streams.orders]", _QUERY)
    assert project.held()["choices"] == ["refresh", "retry"]
    project.answer("refresh")
    assert project.equal()


def test_rows_that_the_source_has_no_more_are_not_replaced_by_an_edit_of_the_mode(
    project: Project,
) -> None:
    project.loads_into("duckdb")
    project.add(0, 50)
    project.do("run", "p")
    all_rows, text = project.rows(), project.config.read_text()
    project.change("delete from orders where id < 40")
    project.save(_whole(text))
    assert project.held()["choices"] == ["refresh", "retry"]
    assert project.rows() == all_rows
    project.save(text)
    project.answer("retry")
    assert project.rows() == all_rows
    project.save(_whole(text))
    project.held()
    project.answer("refresh")
    assert project.equal()
    project.change("delete from orders where id < 45")
    project.do("run", "p")
    assert project.equal(), "each run replaces them now"


def test_a_table_that_was_read_as_a_whole_can_go_on_by_a_cursor(project: Project) -> None:
    project.loads_into("duckdb")
    by_cursor = project.config.read_text()
    project.save(by_cursor.replace('cursor = ["updated_at"]\n', ""))
    project.add(0, 50)
    project.do("run", "p")
    project.save(by_cursor)
    assert project.held()["choices"] == ["refresh", "cursor set", "retry"]
    project.do("cursor", "set", "p.orders", _AT)
    project.add(50, 60)
    project.do("run", "p")
    assert project.equal()
    assert json.loads(project.do("runs", "p", "--json"))[0]["rows"] == 10, "and no more was read"


def test_a_time_in_another_form_than_the_source_writes_is_no_place_to_go_on(
    project: Project,
) -> None:
    project.loads_into("duckdb")
    project.add(0, 50)
    project.do("run", "p")
    said = project.do("cursor", "set", "p.orders", "2026-01-01T00:00:10", code=2)
    assert "2026-01-01 00:00:49" in said, "as the source writes it"
    project.do("cursor", "set", "p.orders", "2026-01-01")
    project.do("run", "p")
    assert project.equal()


def test_a_schema_change_is_approved_or_rejected_by_a_person(project: Project) -> None:
    project.loads_into("duckdb", lambda text: text + 'schema_changes = { added = "hold" }\n')
    project.add(0, 50)
    project.do("run", "p")
    with sqlite3.connect(project.source) as db:
        db.execute("alter table orders add column note text")
        db.execute("update orders set note = 'n', updated_at = '2026-02-01' where id = 3")
    hold = project.held()
    assert hold["kind"] == "schema"
    diff = json.loads(project.do("schema", "diff", "p.orders", "--json"))
    project.do("approve", "p.orders", "--fingerprint", "0" * len(diff["fingerprint"]), code=1)
    assert project.held() == hold, "still the same question"
    project.do("approve", "p.orders", "--fingerprint", diff["fingerprint"])
    project.do("run", "p")
    assert project.equal()
    with duckdb.connect(str(project.there()), read_only=True) as db:
        assert db.execute("select id from orders where note = 'n'").fetchall() == [(3,)]

    with sqlite3.connect(project.source) as db:
        db.execute("alter table orders add column secret text")
        db.execute("update orders set secret = 's', updated_at = '2026-02-02' where id = 4")
    project.held()
    project.do("reject", "p.orders")
    project.do("run", "p")
    assert project.equal()
    with duckdb.connect(str(project.there()), read_only=True) as db:
        columns = [row[0] for row in db.execute("describe orders").fetchall()]
    assert "note" in columns
    assert "secret" not in columns


def test_an_answer_to_a_question_that_moved_on_is_not_enough(project: Project) -> None:
    project.loads_into("duckdb", lambda text: text + 'schema_changes = { added = "hold" }\n')
    project.add(0, 50)
    project.do("run", "p")
    with sqlite3.connect(project.source) as db:
        db.execute("alter table orders add column note text")
        db.execute("update orders set note = 'n', updated_at = '2026-02-01' where id = 3")
    project.held()
    with sqlite3.connect(project.source) as db:
        db.execute("alter table orders add column more text")
    project.do("approve", "p.orders")
    hold = project.held()
    assert "'more'" in hold["reason"]
    assert "'note'" not in hold["reason"], "nothing is asked twice"
    project.answer("approve")
    assert project.equal()


@pytest.mark.parametrize("how", ["source", "config"])
def test_a_schema_change_that_was_put_back_or_is_answered_by_now_is_looked_at_again(
    project: Project, how: str
) -> None:
    project.loads_into("duckdb", lambda text: text + 'schema_changes = { added = "hold" }\n')
    project.add(0, 50)
    project.do("run", "p")
    project.change("alter table orders add column note text")
    project.add(50, 60)
    asked = project.held()["reason"]
    project.do("retry", "p.orders")
    assert project.held()["reason"] == asked, "nothing was put back yet"
    if how == "source":
        project.change("alter table orders drop column note")
    else:
        _edit(project, 'added = "hold"', 'added = "add"')
    project.answer("retry")
    assert project.equal()
    made = json.loads(project.do("schema", "p.orders", "--json"))["decisions"]
    assert [one["by"] for one in made] == ([] if how == "source" else ["policy"])


def _whole(text: str) -> str:
    return text.replace('"merge"', '"replace"').replace('cursor = ["updated_at"]\n', "")


def test_a_table_that_became_empty_does_not_empty_the_destination(project: Project) -> None:
    project.loads_into("duckdb", _whole)
    project.add(0, 50)
    project.do("run", "p")
    full = project.rows()
    with sqlite3.connect(project.source) as db:
        db.execute("delete from orders")
    assert project.held()["kind"] == "empty_replace"
    assert project.rows() == full
    project.add(0, 10)
    project.answer("retry")
    assert project.equal()


@pytest.mark.parametrize("answer", ["refresh", "put back", "reread"])
def test_a_file_that_changed_is_held_and_each_answer_works(inbox: Inbox, answer: str) -> None:
    """Also by an edit of the config, for which the stream waits with its `retry`."""
    inbox.write_config(
        _FILES.replace('"parquet"\npath = "lake"', '"duckdb"\npath = "out.duckdb"')
        + 'mode = "merge"\nkey = ["id"]\n'
    )
    inbox.put("a.csv", 1, 2)
    inbox.do("run", "p")
    inbox.put("a.csv", 1, 2, 3)
    hold = inbox.held()
    assert (hold["kind"], hold["choices"]) == ("files_changed", ["refresh", "retry"])
    if answer == "put back":
        inbox.put("a.csv", 1, 2)
    elif answer == "reread":
        _edit(inbox, 'mode = "merge"', 'mode = "merge"\nchanged = "reread"')
        inbox.held()
    inbox.answer("refresh" if answer == "refresh" else "retry")
    assert len(inbox.rows()) == (2 if answer == "put back" else 3)


def test_a_folder_without_files_asks_no_more_than_whether_to_empty_the_table(
    inbox: Inbox,
) -> None:
    inbox.write_config(_FILES + 'mode = "replace"\nkey = ["id"]\n')
    inbox.destination = "parquet"
    (inbox.folder / "in").mkdir()
    inbox.do("run", "p")
    inbox.do("refresh", "p")
    inbox.do("run", "p")
    inbox.put("a.csv", 1, 2)
    inbox.do("run", "p")
    assert inbox.ids() == [1, 2]
    (inbox.folder / "in" / "a.csv").unlink()
    assert inbox.held()["kind"] == "empty_replace"
    assert inbox.ids() == [1, 2]
    _edit(inbox, 'mode = "replace"', 'mode = "replace"\nallow_empty = true')
    inbox.answer("retry")
    assert inbox.ids() == []


_BY_TEXT = ('["updated_at"]', '["name"]')


@pytest.mark.parametrize(
    ("edit", "kind"),
    [(_BY_TEXT, "null_cursor"), (_BY_NAME, "null_key")],
    ids=["cursor", "key"],
)
@pytest.mark.parametrize("answer", ["fill", "skip"])
def test_a_value_that_is_missing_is_held_and_each_answer_works(
    project: Project, edit: tuple[str, str], kind: str, answer: str
) -> None:
    project.loads_into("duckdb", lambda text: text.replace(*edit))
    project.add(0, 50)
    project.do("run", "p")
    project.change("insert into orders values (100, '2026-02-01', null)")
    hold = project.held()
    assert hold["kind"] == kind
    assert "retry" in hold["choices"]
    if answer == "fill":
        project.change("update orders set name = 'z', updated_at = '2026-02-02' where id = 100")
    elif kind == "null_cursor":
        _edit(project, _BY_TEXT[1], _BY_TEXT[1] + '\nnull_cursor = "skip"')
        project.held()
    else:
        project.change("delete from orders where name is null")
    project.answer("retry")
    assert project.rows() == [row for row in project.source_rows("orders") if row[1] is not None]
