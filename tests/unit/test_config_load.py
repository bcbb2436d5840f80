"""From file and environment to desired state: levels, defaults, paths, includes, variables."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from reconciler.cli.running import _secret_variables
from reconciler.config import ConfigError, explain, find_config, json_schema, load, locate
from reconciler.config.desired import (
    Connection,
    Cron,
    Daemon,
    Every,
    FileFormat,
    Mode,
    Project,
    SchemaPolicy,
    SecretRef,
)

Write = Callable[..., Path]

SHOP = """
project = "shop"

[connections.shop_db]
connector = "sql"
url = "postgresql://reader@db.internal/shop"
password = "env:SHOP_DB_PASSWORD"
max_runs = 2

[connections.warehouse]
connector = "duckdb"
path = "shop.duckdb"

[connections.inbox]
connector = "files"
path = "inbox"

[connections.lake]
connector = "parquet"
path = "/srv/lake"

[connections.runs]
connector = "history"

[pipelines.shop]
source = "shop_db"
destination = "warehouse"
schedule = "every 15m"
select = ["public.*", "!*_tmp"]
cursor = ["updated_at", "modified_on"]
fresh_within = "1h"
schema_changes = { narrowed = "new_column" }

[pipelines.shop.streams."public.country"]
mode = "replace"
schema_changes = { added = "hold" }

[pipelines.statements]
source = "inbox"
destination = "lake"
after = "shop"

[pipelines.statements.streams.statements]
path = "statements_*.csv"
format = { type = "csv", delimiter = ";" }
columns = { amount = "decimal(18, 2)", booked_on = "date" }
partition_by = "day(booked_on)"

[pipelines.history]
source = "runs"
destination = "lake"
schedule = "0 6 * * *"
timezone = "Europe/Berlin"
select = "runs"
"""
ENV = {"SHOP_DB_PASSWORD": "hunter2"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(text: str, name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return to


@pytest.fixture
def shop(write: Write) -> Path:
    return write(SHOP)


def refused(path: Path, env: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, env if env is not None else ENV)
    return str(caught.value).replace(f"{path.parent}/", "")


# -- what a file means ---------------------------------------------------------------------------


def test_what_is_not_said_has_its_default(write: Write) -> None:
    path = write('project = "shop"\n')
    assert load(path, {}) == Project(
        name="shop",
        state_dir=path.parent / "state",
        catalog=f"sqlite:///{path.parent}/state/catalog.db",
        files=(path,),
    )


def test_connections_know_their_options_and_where_their_secrets_are(shop: Path) -> None:
    connections = load(shop, ENV).connections
    assert connections["shop_db"] == Connection(
        "shop_db",
        "sql",
        {"url": "postgresql://reader@db.internal/shop"},
        {"password": SecretRef("env", "SHOP_DB_PASSWORD")},
        max_runs=2,
    )
    warehouse = {"path": str(shop.parent / "shop.duckdb"), "schema": "main"}
    assert connections["warehouse"] == Connection("warehouse", "duckdb", warehouse)
    assert connections["lake"].options == {"path": "/srv/lake"}
    assert connections["runs"] == Connection("runs", "history")


def test_a_stream_goes_before_its_pipeline_and_tables_are_laid_over_key_by_key(shop: Path) -> None:
    pipeline = load(shop, ENV).pipelines["shop"]
    assert pipeline.schedule == Every(900)
    assert pipeline.fresh_within == 3600
    country = pipeline.settings("public.country")
    assert country.mode is Mode.REPLACE
    assert country.cursor == ()  # the whole table is read each time
    assert country.schema_changes == SchemaPolicy(added="hold", narrowed="new_column")
    other = pipeline.settings("public.orders")
    assert other.mode is Mode.MERGE
    assert other.cursor == ("updated_at", "modified_on")


def test_files_are_appended_unless_told_otherwise(shop: Path) -> None:
    pipeline = load(shop, ENV).pipelines["statements"]
    assert pipeline.after == ("shop",)
    assert pipeline.schedule is None
    stream = pipeline.streams["statements"]
    assert stream.mode is Mode.APPEND
    assert stream.format == FileFormat("csv", ";")
    assert stream.columns == (("amount", "decimal(18,2)"), ("booked_on", "date"))
    assert stream.partition_by == ("day(booked_on)",)


def test_tables_are_one_where_duckdb_takes_their_names_for_one(write: Write) -> None:
    """It tells upper from lower case beyond ASCII (``config_bad/two_tables_but_for_case``)."""
    two = "".join(f'\n[pipelines.shop.streams."public.{n}"]\nkey = "id"\n' for n in ("Été", "été"))
    assert {"public.Été", "public.été"} <= load(write(SHOP + two), ENV).pipelines[
        "shop"
    ].streams.keys()


def test_the_run_history_can_be_exported(shop: Path) -> None:
    pipeline = load(shop, ENV).pipelines["history"]
    assert pipeline.schedule == Cron("0 6 * * *", "Europe/Berlin")
    assert pipeline.defaults.mode is Mode.APPEND


def test_defaults_hold_for_every_pipeline_that_does_not_say_otherwise(write: Write) -> None:
    defaults = """
    [defaults]
    retries = 1
    catch_up = false
    cursor = "changed_at"
    partition_by = "month(changed_at)"
    """
    path = write(SHOP.replace("[pipelines.shop]", f"{textwrap.dedent(defaults)}\n[pipelines.shop]"))
    pipelines = load(path, ENV).pipelines
    assert {p.retries for p in pipelines.values()} == {1}
    assert not pipelines["shop"].catch_up
    assert pipelines["shop"].defaults.cursor == ("updated_at", "modified_on")
    # What a source or destination does not have is passed over in [defaults].
    assert pipelines["statements"].streams["statements"].cursor == ()
    assert pipelines["shop"].defaults.partition_by == ()
    assert pipelines["history"].defaults.partition_by == ("month(changed_at)",)


def test_equal_settings_are_one_record(write: Write) -> None:
    text = SHOP
    for n in range(3):
        text += f"""
        [pipelines.p{n}]
        source = "inbox"
        destination = "lake"
        schedule = "every 1h"
        [pipelines.p{n}.streams.s{n}]
        path = "s_*.csv"
        """
    pipelines = load(write(text), ENV).pipelines
    assert pipelines["p0"].schedule is pipelines["p2"].schedule
    assert pipelines["p0"].defaults is pipelines["p2"].defaults
    assert pipelines["p0"].streams["s0"] is pipelines["p2"].streams["s2"]


def test_many_pipelines_take_little_memory(write: Write) -> None:
    import tracemalloc

    many = "".join(
        f'[pipelines.p{n:04}]\nsource = "shop_db"\ndestination = "warehouse"\n'
        f'schedule = "every 5m"\nselect = "t{n}_*"\n'
        for n in range(2000)
    )
    path = write(SHOP + many)
    load(path, ENV)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        project = load(path, ENV)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / len(project.pipelines) < 1024
    assert gc.isenabled()


# -- which file ----------------------------------------------------------------------------------


def test_the_file_named_goes_before_the_variable_and_that_before_the_usual_places(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = write('project = "here"\n')
    other = write('project = "other"\n', "other.toml")
    third = write('project = "third"\n', "third.toml")
    monkeypatch.chdir(tmp_path)
    env = {"RECONCILER_CONFIG": str(other)}
    assert find_config(third, env) == third
    assert find_config(None, env) == other
    assert (Path.cwd() / find_config(None, {})).samefile(here)
    assert load(None, env).name == "other"


def test_no_file_at_all_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no config file: neither .*; name one with --config"):
        find_config(None, {})
    with pytest.raises(ConfigError, match=r"named by --config, is not there"):
        find_config(tmp_path / "gone.toml", {})
    with pytest.raises(ConfigError, match=r"named by RECONCILER_CONFIG, is a directory"):
        find_config(None, {"RECONCILER_CONFIG": str(tmp_path)})


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, write: Write) -> None:
    assert "cannot be read: no such file" in refused(tmp_path / "gone.toml")
    path = write("")
    path.write_bytes(b'project = "shop"\n# \xff\n')
    assert refused(path) == "config.toml:2: is not UTF-8 text"


# -- includes ------------------------------------------------------------------------------------

PIPELINE = """
[pipelines.{name}]
source = "{source}"
destination = "warehouse"
[pipelines.{name}.streams.{name}]
path = "*.csv"
"""


def test_included_files_bring_pipelines_and_connections(write: Write, tmp_path: Path) -> None:
    path = write('include = ["more/*.toml"]\n' + SHOP)
    write(
        '[connections.drop]\nconnector = "files"\npath = "drop"\n'
        + PIPELINE.format(name="b", source="drop"),
        "more/b.toml",
    )
    write(PIPELINE.format(name="a", source="inbox"), "more/a.toml")
    project = load(path, ENV)
    assert project.files == (path, tmp_path / "more/a.toml", tmp_path / "more/b.toml")
    assert list(project.pipelines) == ["shop", "statements", "history", "a", "b"]
    # A relative path is relative to the file that names it.
    assert project.connections["drop"].options["path"] == str(tmp_path / "more/drop")


def test_a_glob_that_matches_the_first_file_itself_does_not_include_it(
    write: Write, tmp_path: Path
) -> None:
    path = write('include = ["*.toml"]\n' + SHOP)
    (tmp_path / "link.toml").symlink_to(path)
    (tmp_path / "gone.toml").symlink_to("nowhere")
    (tmp_path / "sub").mkdir()
    said = refused(tmp_path / "sub" / ".." / path.name)
    assert said.count("\n") == 0
    assert "gone.toml: cannot be read" in said
    (tmp_path / "gone.toml").unlink()
    assert load(tmp_path / "sub" / ".." / path.name, ENV).name == "shop"


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "config.toml").write_text(SHOP)
    said = refused(folder / "config.toml")
    assert 'key "connections.inbox.path": lies in a folder whose name is no UTF-8 text' in said
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        locate(folder / "config.toml", {})


def test_a_glob_may_match_nothing(write: Write) -> None:
    assert load(write('include = ["more/*.toml"]\n' + SHOP), ENV).name == "shop"


def test_the_same_pipeline_in_two_files_names_both_places(write: Write) -> None:
    path = write('include = "more/*.toml"\n' + SHOP)
    write(PIPELINE.format(name="shop", source="inbox"), "more/b.toml")
    assert refused(path) == (
        'more/b.toml:2: key "pipelines.shop": is there already, at config.toml:26; '
        "give one of the two another name"
    )


def test_a_problem_in_an_included_file_names_that_file(write: Write) -> None:
    path = write('include = ["a.toml", "b.toml", "c.toml", "d.toml"]\n' + SHOP)
    write(PIPELINE.format(name="a", source="inbx"), "a.toml")
    write("[daemon]\nmax_runs = 3\n", "b.toml")
    write("[pipelines\n", "c.toml")
    write('pipelines = "none"\n', "d.toml")
    assert [line.partition(";")[0] for line in refused(path).splitlines()] == [
        'a.toml:3: key "pipelines.a.source": names connection "inbx", which is not there',
        'b.toml:1: key "daemon": has no place in an included file',
        'd.toml:1: key "pipelines": is no table',
        "c.toml:1: is no TOML: Expected ']' at the end of a table declaration (column 11)",
    ]


# -- the environment -----------------------------------------------------------------------------


def test_a_variable_takes_the_place_of_any_value(shop: Path) -> None:
    env = ENV | {
        "RECONCILER_PROJECT": "other",
        "RECONCILER_DAEMON__MAX_RUNS": "4",
        "RECONCILER_DEFAULTS__RETRIES": "7",
        "RECONCILER_CONNECTIONS__shop_db__URL": "postgresql://me@elsewhere/shop",
        "RECONCILER_CONNECTIONS__INBOX__PATH": "drop",
        "RECONCILER_PIPELINES__SHOP__SCHEDULE": "every 1m",
        "RECONCILER_PIPELINES__SHOP__CURSOR": '["a", "b"]',
        "RECONCILER_PIPELINES__SHOP__KEY": "id",
        "RECONCILER_PIPELINES__SHOP__LOOKBACK": "10",
        "RECONCILER_PIPELINES__SHOP__SCHEMA_CHANGES": '{ added = "ignore" }',
        "RECONCILER_PIPELINES__SHOP__STREAMS__PUBLIC_COUNTRY__TABLE": "lands",
        "RECONCILER_PIPELINES__STATEMENTS__STREAMS__STATEMENTS__FORMAT__DELIMITER": ",",
        "RECONCILER_PIPELINES__STATEMENTS__STREAMS__STATEMENTS__COLUMNS__AMOUNT": "float64",
    }
    project = load(shop, env)
    assert project.name == "other"
    assert project.daemon == Daemon(max_runs=4)
    assert project.connections["shop_db"].options["url"] == "postgresql://me@elsewhere/shop"
    assert project.connections["inbox"].options["path"] == str(shop.parent / "drop")
    pipeline = project.pipelines["shop"]
    assert (pipeline.schedule, pipeline.retries) == (Every(60), 7)
    settings = pipeline.defaults
    assert (settings.cursor, settings.key, settings.lookback) == (("a", "b"), ("id",), 10)
    assert settings.schema_changes == SchemaPolicy(added="ignore", narrowed="new_column")
    assert pipeline.streams["public.country"].table == "lands"
    statements = project.pipelines["statements"].streams["statements"]
    assert statements.format == FileFormat("csv", ",")
    assert dict(statements.columns)["amount"] == "float64"


def test_include_can_come_from_the_environment(write: Write) -> None:
    path = write(SHOP)
    write(PIPELINE.format(name="a", source="inbox"), "more/a.toml")
    for value in ("more/*.toml", '["more/*.toml"]'):
        assert "a" in load(path, ENV | {"RECONCILER_INCLUDE": value}).pipelines


def test_a_run_hides_the_secrets_of_every_file_from_its_worker(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(SHOP)
    theirs = 'connector = "sql"\nurl = "postgresql://b"\npassword = "env:THEIR_PASSWORD"\n'
    write(f"[connections.theirs]\n{theirs}", "more/a.toml")
    for value in ("more/*.toml", '["more/*.toml"]'):
        monkeypatch.setenv("RECONCILER_INCLUDE", value)
        assert _secret_variables(path) >= {"SHOP_DB_PASSWORD", "THEIR_PASSWORD"}


def test_a_wrong_value_of_a_variable_names_the_variable(shop: Path) -> None:
    env = ENV | {"RECONCILER_DAEMON__MAX_RUNS": "many", "RECONCILER_DEFAULTS__CATCH_UP": "yes"}
    assert refused(shop, env).splitlines() == [
        'environment variable RECONCILER_DAEMON__MAX_RUNS: key "daemon.max_runs": '
        'has the wrong type; found "many"; allowed: a whole number',
        'environment variable RECONCILER_DEFAULTS__CATCH_UP: key "defaults.catch_up": '
        'has the wrong type; found "yes"; allowed: true or false',
    ]


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("RECONCILER_DEAMON__MAX_RUNS", 'the config has no "deamon"'),
        ("RECONCILER_DAEMON__MAXRUNS", 'daemon has no "maxruns"'),
        ("RECONCILER_PIPELINES__SHOPP__SCHEDULE", 'pipelines has no "shopp"'),
        ("RECONCILER_CONNECTIONS__NEW__URL", 'connections has no "new"'),
        ("RECONCILER_PIPELINES__SHOP__SCHEDULE__EVERY", 'pipelines.shop.schedule has no "every"'),
        ("RECONCILER_CONNECTIONS", "sets all of connections at once"),
        ("RECONCILER_PIPELINES__SHOP__STREAMS", "sets all of pipelines.shop.streams at once"),
        ("RECONCILER_", "names no key"),
    ],
)
def test_a_variable_that_addresses_nothing_is_refused_and_its_value_not_shown(
    shop: Path, variable: str, said: str
) -> None:
    message = refused(shop, ENV | {variable: "hunter2"})
    assert message.startswith(f"environment variable {variable}: ")
    assert said in message
    assert "hunter2" not in message


def test_reserved_variables_and_those_of_secrets_set_no_key(write: Write) -> None:
    path = write(SHOP.replace("env:SHOP_DB_PASSWORD", "env:RECONCILER_DB_PASSWORD"))
    env = {
        "RECONCILER_CONFIG": "elsewhere.toml",
        "RECONCILER_DEBUG": "1",
        "RECONCILER_TEST_CRASH_AT": "x",
        "RECONCILER_SERVICE_HOST": "10.0.0.1",
        "RECONCILER_PORT": "tcp://10.0.0.1:8790",
        "RECONCILER_PORT_8790_TCP_ADDR": "10.0.0.1",
        "RECONCILER_DB_PASSWORD": "hunter2",
    }
    assert load(path, env).name == "shop"


def test_a_variable_that_may_mean_two_names_is_refused(write: Write) -> None:
    text = SHOP + PIPELINE.format(name="a-b", source="inbox")
    text += PIPELINE.format(name="a_b", source="inbox")
    message = refused(write(text), ENV | {"RECONCILER_PIPELINES__A_B__RETRIES": "1"})
    assert "may mean more than one: a-b and a_b" in message


def test_two_variables_for_one_key_are_refused(shop: Path) -> None:
    env = ENV | {"RECONCILER_DAEMON__MAX_RUNS": "1", "RECONCILER_daemon__max_runs": "2"}
    assert "sets daemon.max_runs, as RECONCILER_DAEMON__MAX_RUNS does" in refused(shop, env)


def test_a_list_that_is_no_toml_is_refused(shop: Path) -> None:
    env = ENV | {"RECONCILER_PIPELINES__SHOP__CURSOR": '["a", hunter2]'}
    message = refused(shop, env)
    assert "holds no TOML value" in message
    assert "hunter2" not in message


# -- locate --------------------------------------------------------------------------------------


def test_locate_agrees_with_load(write: Write) -> None:
    text = SHOP.replace('"shop"\n', '"shop"\nstate_dir = "/var/lib/shop"\n', 1)
    text = f'catalog_limit = "20GiB"\n{text}'
    text += '[daemon]\nlisten = "0.0.0.0:80"\n'
    large = text + "# filled up\n" * 10_000
    later = large + '[retention]\nruns = "1d"\n'
    hidden = large + '[connections.x]\nconnector = "files"\npath = """\n[daemon]"""\n'
    moved = {"RECONCILER_STATE_DIR": "here"}
    for body in (text, large, later, hidden):
        path = write(body)
        for env in (ENV, ENV | moved):
            project = load(path, env)
            limit = project.catalog_limit
            expected = (project.name, project.state_dir, project.catalog, limit)
            assert locate(path, env) == expected


def test_what_is_wrong_elsewhere_bars_no_command_that_only_needs_the_catalog(write: Write) -> None:
    path = write(f'{SHOP}[daemon]\nlisten = "x"\n')
    assert "listen" in refused(path, ENV)
    assert locate(path, ENV).project == "shop"


def test_locate_names_what_is_wrong_as_load_does(write: Write) -> None:
    path = write('state_dir = 7\ncatalog = "mysql://me:hunter2@x"\n')
    with pytest.raises(ConfigError) as caught:
        locate(path, {})
    assert [p.key for p in caught.value.problems] == ["project", "state_dir", "catalog"]
    assert "hunter2" not in str(caught.value)


def test_locating_the_catalog_loads_no_pydantic(shop: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import reconciler.config as c; "
        f"c.locate(Path({str(shop)!r}), {{}}); c.find_config(Path({str(shop)!r}), {{}}); "
        "sys.exit('pydantic' in sys.modules or 'pydantic_core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# -- explain and schema --------------------------------------------------------------------------


def test_every_value_says_where_it_comes_from(shop: Path) -> None:
    env = {"RECONCILER_PIPELINES__SHOP__PARALLEL": "3"}  # secrets are not looked at
    explained = explain(shop, "shop", env)
    own = {v.key: (v.value, v.origin, str(v.place)) for v in explained.values}
    config = str(shop)
    assert own["schedule"] == ("every 15m", "pipeline", f"{config}:28")
    assert own["parallel"][:2] == (3, "environment")
    assert own["parallel"][2].endswith("RECONCILER_PIPELINES__SHOP__PARALLEL")
    assert own["retries"] == (5, "default", "config")
    assert own["fresh_within"] == ("1h", "pipeline", f"{config}:31")
    values = explained.streams["public.country"]
    country = {v.key: (v.value, v.origin, v.place.line) for v in values}
    assert country["mode"] == ("replace", "stream", 35)
    assert country["schema_changes.added"] == ("hold", "stream", 36)
    assert country["schema_changes.narrowed"] == ("new_column", "pipeline", 32)
    assert country["schema_changes.retyped"] == ("hold", "default", 0)
    assert "path" not in country  # a database's table has none


def test_a_value_of_defaults_is_explained_as_such(write: Write) -> None:
    path = write("\n".join((SHOP, "[defaults]", 'stall_timeout = "5m"', 'settle = "2s"')))
    values = {v.key: v for v in explain(path, "statements", ENV).values}
    assert (values["stall_timeout"].value, values["stall_timeout"].origin) == ("5m", "[defaults]")
    assert (values["settle"].value, values["settle"].origin) == ("2s", "[defaults]")


def test_explaining_an_unknown_pipeline_names_the_nearest(shop: Path) -> None:
    with pytest.raises(ConfigError, match=r'has no pipeline "shp"; .* did you mean "shop"\?'):
        explain(shop, "shp", ENV)


def test_the_schema_describes_every_key() -> None:
    def keys(schema: object) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        if isinstance(schema, dict):
            found += schema.get("properties", {}).values()
            for inner in schema.values():
                found += keys(inner)
        elif isinstance(schema, list):
            for inner in schema:
                found += keys(inner)
        return found

    found = keys(json_schema())
    assert len(found) > 80
    assert all(key.get("description") for key in found)
    assert "null" not in str(json_schema()).replace("'null'", "").replace("null_cursor", "")


def test_the_answers_to_schema_changes_are_those_that_can_be_carried_out() -> None:
    from reconciler.schema.answers import ALLOWED

    properties = json_schema()["$defs"]["SchemaChangesTable"]["properties"]
    answers = {kind: set(key["enum"]) for kind, key in properties.items()}
    assert answers == {kind: set(ALLOWED[kind]) for kind in answers}
