"""What an edit of the config does, line by line of the table in ``docs/configuration.md``.

The first half edits the file under a daemon that runs, the second half between two runs.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.crash.test_kill_points import _DUCKDB, _row
from tests.e2e.test_holds import Project
from tests.e2e.world import Daemon, World, eventually

_P = _DUCKDB[_DUCKDB.index("[pipelines.p]") :]
_SELDOM = _DUCKDB.replace('"every 1s"', '"every 1h"')
_FILES = """
[connections.inbox]
connector = "files"
path = "inbox"
[connections.dst]
connector = "{destination}"
path = "out"
[pipelines.p]
source = "inbox"
destination = "dst"
settle = "0s"
[pipelines.p.streams.lines]
path = "*.csv"
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    world.write_config(_DUCKDB)
    world.fill("orders", (_row(n) for n in range(50)))
    yield world
    world.close()


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Project]:
    project = Project(tmp_path, capsys)
    project.loads_into("duckdb")
    project.add(0, 50)
    yield project
    project.close()


def _equal(world: World, table: str = "orders", file: str = "out.duckdb") -> bool:
    return world.duckdb_rows(table, file) == world.source_rows("orders")


def _edit(world: World, *pairs: tuple[str, str]) -> None:
    text = world.config.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    new_file = world.config.with_suffix(".new")
    new_file.write_text(text)
    new_file.rename(world.config)  # as editors save


def _append(world: World, text: str) -> None:
    _edit(world, ("[connections.src]", text + "\n[connections.src]"))


def _taken_up(daemon: Daemon, subject: str, after: int = 0) -> None:
    daemon.wait_for("config_reloaded", lambda event: event["subject"] == subject, after=after)


# -- under a daemon ------------------------------------------------------------------------------


def test_schedule_and_limits_take_effect_at_once(world: World) -> None:
    world.write_config(_SELDOM)
    daemon = world.start()
    daemon.finished("p", "succeeded")
    world.fill("orders", [_row(100)])
    _edit(world, ('"every 1h"', '"every 1s"\nretries = 0\ncatch_up = false'))
    _taken_up(daemon, "p")
    eventually(lambda: _equal(world), "it runs each second now")
    seen = len(daemon.events)
    _edit(world, ("retries = 0", 'retries = 0\nstall_timeout = "30s"'), ('"2s"', '"3s"'))
    told = daemon.wait_for(
        "config_reloaded", lambda event: event["key"] == "stall_timeout", after=seen
    )
    assert (told["new"], "Takes effect at once" in told["change"]) == ("30.0", True)
    world.fill("orders", [_row(101)])
    eventually(lambda: _equal(world), "and goes on")
    assert daemon.stop() == 0


def test_a_limit_of_a_connection_takes_effect_at_once(world: World) -> None:
    more = _P.replace("pipelines.p", "pipelines.{0}").replace("streams.orders]", "streams.{0}]")
    slow = 'query = "select * from orders"\nkey = ["id"]\n'
    names = ("q", "r", "s")
    world.write_config(_DUCKDB + "".join(more.format(name) + slow for name in names))
    daemon = world.start()
    for name in names:
        daemon.finished(name, "succeeded")
    _edit(world, ('url = "sqlite:///source.db"', 'url = "sqlite:///source.db"\nmax_runs = 1'))
    _taken_up(daemon, "connection src")
    seen = len(daemon.events)
    world.fill("orders", [_row(200)])
    for name in names:
        daemon.finished(name, "succeeded", after=seen)
    world.fill("orders", [_row(201)])  # by now no run is under way from before the edit
    seen = len(daemon.events)
    late = [daemon.finished(name, "succeeded", after=seen)["run"] for name in names]
    assert daemon.stop() == 0
    runs = json.loads(world.do("runs", "--json"))
    times = sorted((run["started_at"], run["finished_at"]) for run in runs if run["id"] in late)
    assert len(times) == len(names)
    assert all(ended <= began for (_, ended), (began, _) in pairwise(times)), times


def test_pipelines_and_streams_come_and_go_beside_the_others(world: World) -> None:
    daemon = world.start()
    daemon.finished("p", "succeeded")
    extra = '[pipelines.p.streams.more]\ntable = "more"\nquery = "select * from orders"\nkey = "id"'
    _append(world, extra)
    _append(world, _P.replace("pipelines.p", "pipelines.q").replace("streams.orders", "streams.q")
            + 'query = "select * from orders"\nkey = "id"')  # fmt: skip
    daemon.finished("q", "succeeded")
    eventually(lambda: _equal(world, "more") and _equal(world, "q"), "both are loaded")
    seen = len(daemon.events)
    _edit(world, (extra, ""), ("[pipelines.q]", '[pipelines.q]\nfresh_within = "1h"'))
    _taken_up(daemon, "p.more", seen)
    _taken_up(daemon, "q", seen)
    world.fill("orders", [_row(300)])
    eventually(lambda: _equal(world), "those that stayed go on")
    eventually(lambda: _equal(world, "q"), "those that stayed go on")
    assert len(world.duckdb_rows("more")) == 50, "what was removed keeps its rows"
    shown = json.loads(world.do("status", "p", "--json"))["streams"]
    assert {s["stream"]: s["orphaned"] for s in shown} == {"orders": False, "more": True}
    assert "orphaned" in world.do("status", "p")
    assert daemon.stop() == 0


_RENAMED = ("[pipelines.p]", '[pipelines.q]\nrenamed_from = "p"'), (".p.", ".q.")


def test_a_renamed_pipeline_goes_on_under_a_daemon(world: World) -> None:
    daemon = world.start()
    daemon.finished("p", "succeeded")
    seen = len(daemon.events)
    _edit(world, *_RENAMED)
    _taken_up(daemon, "q", after=seen)
    world.fill("orders", [_row(100)])
    eventually(lambda: _equal(world), "it goes on by its new name")
    assert daemon.stop() == 0
    runs = json.loads(world.do("runs", "--json"))
    assert {run["pipeline"] for run in runs} == {"q"}
    assert sum(run["rows"] for run in runs) == 51


def test_a_daemon_killed_in_a_run_of_the_old_name_goes_on_by_the_new_one(world: World) -> None:
    daemon = world.start(RECONCILER_TEST_KILL_AT="daemon.committed")
    daemon.died()
    _edit(world, *_RENAMED)
    again = world.start()
    eventually(lambda: _equal(world), "what was committed by the old name is there, once")
    assert again.stop() == 0


def test_what_needs_a_restart_is_said_and_the_rest_takes_effect(world: World) -> None:
    daemon = world.start()
    daemon.finished("p", "succeeded")
    _edit(
        world,
        ('project = "test"', 'project = "test"\nstate_dir = "elsewhere"'),
        ('lease_ttl = "3s"', 'lease_ttl = "9s"'),
        ('"every 1s"', '"every 500ms"'),
    )
    assert "restart" in daemon.wait_for("config_rejected")["reason"]
    _taken_up(daemon, "p")
    world.fill("orders", [_row(100)])
    eventually(lambda: _equal(world), "the same catalog goes on")
    assert not (world.folder / "elsewhere").exists()
    assert daemon.stop() == 0


def test_included_files_are_watched_new_and_broken_ones_too(world: World) -> None:
    world.config.write_text('include = ["more.d/*.toml"]\n' + world.config.read_text())
    text = _P.replace("pipelines.p", "pipelines.{0}").replace("streams.orders]", "streams.{0}]")
    text += 'query = "select * from orders"\nkey = "id"\n'
    one = world.folder / "more.d" / "one.toml"
    daemon = world.start()
    daemon.finished("p", "succeeded")
    one.parent.mkdir()  # there was none when the daemon started
    one.write_text(text.format("q").replace("key =", "kye ="))
    assert "kye" in daemon.wait_for("config_rejected")["reason"]
    one.write_text(text.format("q"))
    daemon.finished("q", "succeeded")
    (one.parent / "two.toml").write_text(text.format("r"))
    daemon.finished("r", "succeeded")
    one.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("config_reloaded", lambda event: "planned no more" in event["change"])
    assert daemon.stop() == 0


# -- between two runs ----------------------------------------------------------------------------


def _first_run(project: Project) -> None:
    project.do("run", "p")
    assert project.equal()


@pytest.mark.parametrize("destination", ["duckdb", "parquet"])
def test_a_pipeline_that_was_renamed_loads_nothing_again(
    project: Project, destination: str
) -> None:
    project.loads_into(destination)
    project.do("run", "p")
    project.add(50, 60)
    _edit(project, *_RENAMED)
    assert "pipeline renamed" in project.do("plan")
    assert "orders  10 " in project.do("run", "q")
    assert project.equal()
    assert "orphaned" not in project.do("status")
    _edit(project, ('renamed_from = "p"\n', ""))
    project.add(60, 70)
    assert "orders  10 " in project.do("run", "q")
    assert project.equal()


def test_a_pipeline_that_was_renamed_without_a_word_can_be_told_later(project: Project) -> None:
    project.do("run", "p")
    _edit(project, ("pipelines.p", "pipelines.q"))
    project.add(50, 60)
    assert "'p'" in project.held("q.orders")["reason"]
    _edit(project, ("[pipelines.q]", '[pipelines.q]\nrenamed_from = "p"'))
    project.do("run", "q")
    assert project.equal()


def test_another_pipeline_by_the_old_name_does_not_touch_the_renamed_one(project: Project) -> None:
    project.do("run", "p")
    _edit(project, *_RENAMED)
    project.do("run", "q")
    _edit(project, ('renamed_from = "p"\n', ""), ("[connections.src]", _P + "\n[connections.src]"))
    _edit(project, ("[pipelines.p.streams.orders]", '[pipelines.p.streams.orders]\ntable = "mine"'))
    assert "it is 'q' now" in project.do("run", "p", code=3)
    project.do("resume", "p")
    project.do("run", "p")
    project.add(50, 60)
    project.do("run", "q")
    project.do("run", "p")
    assert project.equal()
    assert project.duckdb_rows("mine") == project.source_rows("orders")


def test_two_names_with_batches_of_their_own_are_not_made_one(project: Project) -> None:
    project.do("run", "p")
    _edit(project, ("pipelines.p", "pipelines.q"))
    _edit(project, ("[pipelines.q.streams.orders]", '[pipelines.q.streams.orders]\ntable = "mine"'))
    project.do("run", "q")
    _edit(project, ("[pipelines.q]", '[pipelines.q]\nrenamed_from = "p"'))
    assert "cannot take over those of 'p'" in project.do("run", "q", code=1)
    daemon = project.start()
    daemon.wait_for("rename_refused")
    project.add(50, 60)
    eventually(lambda: len(project.duckdb_rows("mine")) == 60, "it goes on as it was")
    assert daemon.stop() == 0
    assert len([e for e in daemon.events if e["event"] == "rename_refused"]) == 1


def test_files_that_were_read_by_the_old_name_are_not_read_again(project: Project) -> None:
    project.write_config(_FILES.format(destination="parquet"))
    (project.folder / "inbox").mkdir()
    (project.folder / "inbox" / "a.csv").write_text("id\n1\n2\n")
    assert "lines   2 " in project.do("run", "p")
    _edit(project, *_RENAMED)
    assert "nothing new" in project.do("run", "q")


def _another_source(project: Project) -> Project:
    other = Project(project.folder, project._capsys)
    other.source = project.folder / "other.db"
    other.fill("orders", (_row(n, "other") for n in range(70)))
    _append(project, '[connections.src2]\nconnector = "sql"\nurl = "sqlite:///other.db"')
    _edit(project, ('source = "src"', 'source = "src2"'))
    return other


def test_another_source_is_held(project: Project) -> None:
    _first_run(project)
    other = _another_source(project)
    hold = project.held()
    assert hold["kind"] == "definition"
    assert "source" in hold["reason"]
    project.answer("refresh")
    assert project.rows() == other.source_rows("orders")


def test_a_table_that_is_replaced_follows_the_config_and_asks_of_its_key_alone(
    project: Project,
) -> None:
    _first_run(project)
    project.change("delete from orders where id < 10")
    _edit(project, ('mode = "merge"', 'mode = "replace"'), ('cursor = ["updated_at"]\n', ""))
    assert project.held()["kind"] == "definition"
    project.answer("refresh")
    assert len(project.rows()) == 40
    assert project.equal()
    other = _another_source(project)
    assert "but those of mode `replace`" in project.do("plan")
    project.do("run", "p")
    assert project.rows() == other.source_rows("orders")
    _edit(project, ("streams.orders]", 'streams.orders]\nkey = ["name"]'))
    assert project.held()["kind"] == "schema"


@pytest.mark.parametrize("how", ["destination", "connection"])
def test_another_destination_is_held(project: Project, how: str) -> None:
    _first_run(project)
    if how == "connection":
        _edit(project, ('path = "out.duckdb"', 'path = "two.duckdb"'))
    else:
        _append(project, '[connections.dst2]\nconnector = "duckdb"\npath = "two.duckdb"')
        _edit(project, ('destination = "dst"', 'destination = "dst2"'))
    assert project.held()["kind"] == "destination"
    project.answer("cursor rewind --to-destination")
    assert _equal(project, file="two.duckdb")
    assert _equal(project), "the old one stays"
    project.add(50, 60)
    project.do("run", "p")
    assert _equal(project, file="two.duckdb")


def test_another_table_is_held_and_the_old_one_stays(project: Project) -> None:
    _first_run(project)
    _edit(project, ("streams.orders]", 'streams.orders]\ntable = "fresh"'))
    assert project.held()["kind"] == "destination"
    project.answer("refresh")
    assert _equal(project, "fresh")
    assert _equal(project), "the old one stays"


_CUT = "worker.before_publish"


def test_a_batch_that_waits_goes_where_it_was_meant_to_before_another_table_is_held(
    project: Project,
) -> None:
    project.cli("run", "p", code=1, RECONCILER_TEST_KILL_AT=_CUT)
    _edit(project, ("streams.orders]", 'streams.orders]\ntable = "fresh"'))
    project.add(50, 60)
    rewind = "cursor rewind --to-destination"
    assert project.held()["choices"] == [rewind, "refresh", "cursor adopt"]
    assert len(project.rows()) == 50, "what waited is in the old table"
    project.answer(rewind)
    assert _equal(project, "fresh")
    _edit(project, ('table = "fresh"', ""))
    project.held()
    project.answer(rewind)
    assert _equal(project)


def test_a_table_that_another_pipeline_made_before_a_batch_came_to_it_is_left_alone(
    project: Project,
) -> None:
    project.cli("run", "p", code=1, RECONCILER_TEST_KILL_AT=_CUT)
    text = project.config.read_text()
    project.save(text.replace(".p", ".q"))
    project.do("run", "q")
    project.save(text)
    assert project.held()["choices"] == ["refresh"]
    _edit(project, ("streams.orders]", 'streams.orders]\ntable = "mine"'))
    assert project.held()["choices"] == ["refresh"]
    project.answer("refresh")
    assert _equal(project, "mine")
    assert _equal(project)


def test_another_order_of_the_keys_columns_is_no_edit(project: Project) -> None:
    _edit(project, ("streams.orders]", 'streams.orders]\nkey = ["id", "name"]'))
    _first_run(project)
    _edit(project, ('["id", "name"]', '["name", "id"]'))
    project.add(50, 60)
    project.do("run", "p")
    assert project.equal()


def test_what_select_takes_loads_beside_the_others_and_what_it_leaves_keeps_its_rows(
    project: Project,
) -> None:
    project.fill("country", [_row(1)])
    _edit(project, ("[pipelines.p.streams.orders]", ""), ('"src"', '"src"\nselect = ["orders"]'))
    _first_run(project)
    assert project.duckdb_rows("country") == []
    _edit(project, ('["orders"]', '["*", "!orders"]'))
    project.add(50, 60)
    project.do("run", "p")
    assert len(project.duckdb_rows("country")) == 1
    assert len(project.rows()) == 50
    assert "orphaned" in project.do("status", "p.orders")


def _lines(project: Project, destination: str) -> list[tuple[Any, ...]]:
    out = project.folder / "out"
    if destination == "duckdb":
        with duckdb.connect(str(out), read_only=True) as db:
            return db.execute("select id from lines order by id").fetchall()
    return duckdb.sql(
        f"select id from read_parquet('{out}/lines/**/*.parquet', hive_partitioning = false)"
        " order by id"
    ).fetchall()


def _put(project: Project, name: str, *ids: str) -> None:
    folder = project.folder / "inbox"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("id\n" + "".join(f"{i}\n" for i in ids))


def test_another_path_reads_the_files_not_read_yet_and_keeps_the_rows(project: Project) -> None:
    project.write_config(_FILES.format(destination="duckdb"))
    _put(project, "a.csv", "1", "2")
    _put(project, "b.txt.csv", "3")
    project.do("run", "p")
    _put(project, "c.txt", "4")
    _edit(project, ('path = "*.csv"', 'path = "*.t*"\nformat = { type = "csv" }'))
    project.do("run", "p")
    assert _lines(project, "duckdb") == [("1",), ("2",), ("3",), ("4",)]


def test_another_layout_is_for_the_next_batch(project: Project) -> None:
    project.write_config(_FILES.format(destination="parquet"))
    _put(project, "a.csv", "1", "2")
    project.do("run", "p")
    _edit(project, ('path = "*.csv"', 'path = "*.csv"\npartition_by = "id"'))
    _put(project, "b.csv", "3")
    project.do("run", "p")
    assert _lines(project, "parquet") == [("1",), ("2",), ("3",)]
    folders = {f.parent.name for f in (project.folder / "out" / "lines").rglob("*.parquet")}
    assert folders == {"lines", "id=3"}


def test_how_it_is_read_takes_effect_with_the_next_run(project: Project) -> None:
    _first_run(project)
    project.fill("orders", [(10, _row(10)[1], "late")])  # behind the cursor
    project.add(50, 51)
    project.do("run", "p")
    assert not project.equal()
    _edit(project, ('mode = "merge"', 'mode = "merge"\nlookback = "1h"'))
    project.add(51, 52)
    project.do("run", "p")
    assert project.equal()


def test_another_policy_answers_the_next_change_and_not_a_hold(project: Project) -> None:
    _edit(project, ('mode = "merge"', 'mode = "merge"\nschema_changes = { added = "hold" }'))
    _first_run(project)
    project.change("alter table orders add column note text")
    project.add(50, 60)
    assert project.held()["kind"] == "schema"
    _edit(project, ('added = "hold"', 'added = "add"'))
    assert project.held()["kind"] == "schema"
    project.do("approve", "p.orders")
    project.do("run", "p")
    project.change("alter table orders add column more text")
    project.add(60, 70)
    project.do("run", "p")
    assert project.equal()
    last = json.loads(project.do("schema", "p.orders", "--json"))["versions"][-1]
    assert {"note", "more"} <= {field["name"] for field in last["body"]["fields"]}
