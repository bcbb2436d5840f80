"""What an edit does: the table in docs/configuration.md, line by line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reconciler.config import changes, keep, last_kept, load
from reconciler.config.desired import Project
from reconciler.config.edits import ChangeKind, ConfigChange

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
BASE = """
project = "shop"

[daemon]
max_runs = 8

[connections.db]
connector = "sql"
url = "sqlite:///shop.db"

[connections.db2]
connector = "sql"
url = "sqlite:///shop2.db"

[connections.inbox]
connector = "files"
path = "inbox"

[connections.warehouse]
connector = "duckdb"
path = "shop.duckdb"

[connections.lake]
connector = "parquet"
path = "lake"

[pipelines.shop]
source = "db"
destination = "warehouse"
schedule = "every 15m"
select = ["main.*"]
cursor = "updated_at"

[pipelines.shop.streams."main.country"]
mode = "merge"

[pipelines.drop]
source = "inbox"
destination = "lake"

[pipelines.drop.streams.orders]
path = "*.csv"

[pipelines.drop.streams.lines]
path = "*.lines"
"""
MORE = '[pipelines.more]\nsource = "db"\ndestination = "warehouse"\nselect = "x"\n'
COUNTRY = '[pipelines.shop.streams."main.country"]\n'
ORDERS = "[pipelines.drop.streams.orders]\n"
LINES = '[pipelines.drop.streams.lines]\npath = "*.lines"\n'
SHOP = "[pipelines.shop]\n"
DB = '[connections.db]\nconnector = "sql"\n'

K = ChangeKind
EDITS = [
    (K.PIPELINE_ADDED, "", MORE, "more"),
    (K.PIPELINE_REMOVED, BASE[BASE.index("[pipelines.drop]") :], "", "drop"),
    (K.SCHEDULE, "every 15m", "every 1h", "shop"),
    (K.SCHEDULE, 'schedule = "every 15m"', 'schedule = "0 6 * * *"', "shop"),
    (K.SCHEDULE, SHOP, SHOP + "catch_up = false\n", "shop"),
    (K.SCHEDULE, SHOP, SHOP + 'after = "drop"\n', "shop"),
    (K.LIMITS, SHOP, SHOP + "parallel = 2\n", "shop"),
    (K.LIMITS, SHOP, SHOP + "retries = 0\n", "shop"),
    (K.LIMITS, SHOP, SHOP + 'stall_timeout = "1m"\n', "shop"),
    (K.LIMITS, SHOP, SHOP + 'timeout = "1m"\n', "shop"),
    (K.LIMITS, SHOP, SHOP + 'fresh_within = "1m"\n', "shop"),
    (K.SOURCE, 'source = "db"', 'source = "db2"', "shop"),
    (K.DESTINATION, 'destination = "lake"', 'destination = "warehouse"', "drop"),
    (K.SELECT, '["main.*"]', '["main.*", "!main.tmp"]', "shop"),
    (K.STREAM_ADDED, LINES, LINES + '[pipelines.drop.streams.new]\npath = "*"\n', "drop.new"),
    (K.STREAM_REMOVED, LINES, "", "drop.lines"),
    (K.DEFINITION, 'mode = "merge"', 'mode = "replace"', "shop.main.country"),
    (K.DEFINITION, COUNTRY, COUNTRY + 'cursor = "id"\n', "shop.main.country"),
    (K.DEFINITION, COUNTRY, COUNTRY + 'key = "id"\n', "shop.main.country"),
    (K.DEFINITION, COUNTRY, COUNTRY + 'query = "select 1"\nkey = "id"\n', "shop.main.country"),
    (K.TABLE, COUNTRY, COUNTRY + 'table = "lands"\n', "shop.main.country"),
    (K.FILES, 'path = "*.lines"', 'path = "*.txt"', "drop.lines"),
    (K.LAYOUT, ORDERS, ORDERS + 'format = { delimiter = ";" }\n', "drop.orders"),
    (K.LAYOUT, ORDERS, ORDERS + 'columns = { id = "int64" }\n', "drop.orders"),
    (K.LAYOUT, ORDERS, ORDERS + 'partition_by = "id"\n', "drop.orders"),
    (K.POLICY, COUNTRY, COUNTRY + 'schema_changes = { added = "hold" }\n', "shop.main.country"),
    (K.READING, COUNTRY, COUNTRY + 'null_cursor = "skip"\n', "shop.main.country"),
    (K.READING, COUNTRY, COUNTRY + 'lookback = "1h"\n', "shop.main.country"),
    (K.READING, COUNTRY, COUNTRY + 'settle = "1s"\n', "shop.main.country"),
    (K.READING, COUNTRY, COUNTRY + 'max_wait = "1s"\n', "shop.main.country"),
    (K.READING, COUNTRY, COUNTRY + 'stamped_by = "application"\n', "shop.main.country"),
    (K.READING, COUNTRY, COUNTRY + "allow_empty = true\n", "shop.main.country"),
    (K.READING, ORDERS, ORDERS + 'changed = "hold"\nsettle = "9s"\n', "drop.orders"),
    (K.CONNECTION_ADDED, "", '[connections.new]\nconnector = "history"\n', "connection new"),
    (K.CONNECTION_LIMIT, DB, DB + "max_runs = 1\n", "connection db"),
    (K.CONNECTION_OPTIONS, "///shop.db", "///other.db", "connection db"),
    (K.CONNECTION_OPTIONS, 'path = "inbox"', 'path = "in"', "connection inbox"),
    (K.DAEMON_LIMITS, "max_runs = 8", "max_runs = 9", "daemon"),
    (K.DAEMON_LIMITS, "max_runs = 8", 'grace = "1s"', "daemon"),
    (K.DAEMON_LIMITS, "", '[retention]\nruns = "1d"\n', "daemon"),
    (K.RESTART, 'project = "shop"', 'project = "other"', "daemon"),
    (K.RESTART, 'project = "shop"', 'project = "shop"\ncatalog_limit = "1GiB"', "daemon"),
    (K.RESTART, 'project = "shop"', 'project = "shop"\ncatalog = "sqlite:///c.db"', "daemon"),
    (K.RESTART, "max_runs = 8", 'listen = "127.0.0.1:1"', "daemon"),
    (K.RESTART, "max_runs = 8", 'lease_ttl = "9s"', "daemon"),
]


def project(tmp_path: Path, text: str) -> Project:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return load(path, {"ONE": "1", "TWO": "2"})


def edited(tmp_path: Path, old: str, new: str) -> tuple[ConfigChange, ...]:
    text = BASE.replace(old, new, 1) if old else BASE + new
    assert text != BASE
    return changes(project(tmp_path, BASE), project(tmp_path, text))


@pytest.mark.parametrize(("kind", "old", "new", "subject"), EDITS)
def test_an_edit_is_one_kind_of_change(
    tmp_path: Path, kind: ChangeKind, old: str, new: str, subject: str
) -> None:
    found = edited(tmp_path, old, new)
    assert {(c.kind, c.subject) for c in found} - {(K.DEFINITION, subject)} == (
        {(kind, subject)} - {(K.DEFINITION, subject)}
    )
    assert (kind, subject) in {(c.kind, c.subject) for c in found}


def test_nothing_edited_is_no_change(tmp_path: Path) -> None:
    assert changes(project(tmp_path, BASE), project(tmp_path, BASE + "# words\n")) == ()


def test_a_renamed_pipeline_is_a_removed_and_a_new_one(tmp_path: Path) -> None:
    text = BASE.replace("pipelines.drop", "pipelines.inbox", 4)
    found = changes(project(tmp_path, BASE), project(tmp_path, text))
    assert found == (
        ConfigChange(K.PIPELINE_REMOVED, "drop"),
        ConfigChange(K.PIPELINE_ADDED, "inbox"),
    )


def test_a_pipeline_that_says_what_it_was_goes_on_where_that_stood(tmp_path: Path) -> None:
    text = BASE.replace("pipelines.drop", "pipelines.inbox", 4)
    text = text.replace(
        "[pipelines.inbox]\n", '[pipelines.inbox]\nrenamed_from = "drop"\nretries = 1\n', 1
    )
    found = changes(project(tmp_path, BASE), project(tmp_path, text))
    assert found == (
        ConfigChange(K.PIPELINE_RENAMED, "inbox", key="renamed_from", old="none", new="drop"),
        ConfigChange(K.LIMITS, "inbox", key="retries", old="5", new="1"),
    )
    later = text.replace('renamed_from = "drop"\n', "")
    assert changes(project(tmp_path, text), project(tmp_path, later)) == ()


def test_a_connection_goes_with_its_pipelines(tmp_path: Path) -> None:
    text = BASE.replace('[connections.db2]\nconnector = "sql"\nurl = "sqlite:///shop2.db"\n', "")
    (found,) = changes(project(tmp_path, BASE), project(tmp_path, text))
    assert (found.kind, found.connection) == (K.CONNECTION_REMOVED, "db2")


def test_a_setting_of_the_pipeline_changes_all_the_streams_it_selects(tmp_path: Path) -> None:
    found = edited(tmp_path, 'cursor = "updated_at"', 'cursor = "changed_at"')
    assert {(c.kind, c.subject, c.key) for c in found} == {
        (K.DEFINITION, "shop", "cursor"),
        (K.DEFINITION, "shop.main.country", "cursor"),
    }


def test_a_stream_that_select_still_matches_is_not_removed(tmp_path: Path) -> None:
    assert edited(tmp_path, COUNTRY + 'mode = "merge"\n', "") == ()


def test_a_change_reads_as_a_sentence(tmp_path: Path) -> None:
    (change,) = edited(tmp_path, 'mode = "merge"', 'mode = "merge"\nstamped_by = "application"')
    assert str(change) == (
        "shop.main.country: reading stamped_by: database -> application. "
        "Takes effect with the next run; a stream that is held waits on, until `retry`."
    )


def test_a_schedule_reads_as_the_file_says_it(tmp_path: Path) -> None:
    (change,) = edited(tmp_path, 'schedule = "every 15m"', 'schedule = "every 1h30m"')
    assert (change.old, change.new) == ("every 15m", "every 1h30m")


def test_lists_and_what_is_not_set_read_as_words(tmp_path: Path) -> None:
    (after,) = edited(tmp_path, SHOP, SHOP + 'after = "drop"\n')
    assert (after.old, after.new) == ("none", "drop")
    (columns,) = edited(tmp_path, ORDERS, ORDERS + 'columns = { id = "int64", at = "date" }\n')
    assert (columns.old, columns.new) == ("none", "id int64, at date")


def test_another_secret_is_told_by_its_name(tmp_path: Path) -> None:
    db = 'url = "postgresql://db/shop"\npassword = "env:{}"\n'
    one, two = (BASE.replace('url = "sqlite:///shop2.db"\n', db.format(v)) for v in ("ONE", "TWO"))
    first, second = project(tmp_path, one), project(tmp_path, two)
    (found,) = changes(first, second)
    assert (found.kind, found.connection, found.key) == (K.CONNECTION_OPTIONS, "db2", "password")
    assert (found.old, found.new) == ("env:ONE", "env:TWO")


def test_a_pipeline_that_was_there_takes_no_other_ones_place(tmp_path: Path) -> None:
    """It has cursors of its own: the other one is removed, and said to be."""
    text = BASE.replace(BASE[BASE.index(SHOP) : BASE.index("[pipelines.drop]")], "")
    text = text.replace("[pipelines.drop]\n", '[pipelines.drop]\nrenamed_from = "shop"\n')
    found = changes(project(tmp_path, BASE), project(tmp_path, text))
    assert found == (ConfigChange(K.PIPELINE_REMOVED, "shop"),)


def test_defaults_of_streams_that_are_selected_no_more_are_no_edit(tmp_path: Path) -> None:
    text = BASE.replace('select = ["main.*"]\n', "").replace("updated_at", "changed_at")
    one, other = project(tmp_path, BASE), project(tmp_path, text)
    for old, new in ((one, other), (other, one)):
        assert {(c.kind, c.subject, c.key) for c in changes(old, new)} == {
            (K.SELECT, "shop", "select"),
            (K.DEFINITION, "shop.main.country", "cursor"),
        }


def test_the_table_in_the_docs_is_what_happens() -> None:
    table = DOCS.read_text().partition("## What an edit does")[2]
    rows = re.findall(r"^\| `(\w+)` \| .+? \| (.+) \|$", table, re.MULTILINE)
    assert dict(rows) == {kind.value: ConfigChange(kind).effect for kind in ChangeKind}


def test_every_line_of_the_table_is_tried() -> None:
    apart = {K.CONNECTION_REMOVED, K.PIPELINE_RENAMED}  # have tests of their own
    assert {kind for kind, *_ in EDITS} | apart == set(ChangeKind)


def test_what_a_loss_of_power_left_of_the_kept_config_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(BASE)
    project = load(tmp_path / "config.toml", {})
    project.state_dir.mkdir()
    (project.state_dir / "config.json").write_bytes(b"\xff\x00")
    assert last_kept(project.state_dir, {}) is None
    keep(project)
    assert last_kept(project.state_dir, {}) == project
