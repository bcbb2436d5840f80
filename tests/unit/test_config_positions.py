"""The line of every key: headers, dotted and quoted keys, values of many lines, inline tables."""

from __future__ import annotations

import textwrap

import pytest

from reconciler.config.positions import LineIndex, dotted

TEXT = textwrap.dedent(
    '''\
    project = "shop"   # [not.a.header]
    include = [
      "a.toml",        # ] = x
      "b]toml",
    ]
    note = """
    [pipelines.hidden]
    key = 1
    """
    raw = \'\'\'
    [also.hidden] \'\'\'

    [daemon]
    max_runs = 3
    grace.soft = "1s"

    [pipelines.shop]   # a comment
    "schedule" = "every 1m"
    schema_changes = { added = "hold", "dropped" = "keep" }
    query = "select '[x]' = \\" from t"
    columns = [ { a = 1 },
      { b = 2 } ]

    [pipelines.shop.streams."public.country"]
    'mode' = "replace"

    [pipelines . "sh\\u006fp2" . streams . 'a.b']
    mode = "merge"

    [[many.tables]]
    x = 1
    '''
)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("project",), 1),
        (("include",), 2),
        (("note",), 6),
        (("raw",), 10),
        (("daemon",), 13),
        (("daemon", "max_runs"), 14),
        (("daemon", "grace"), 15),
        (("daemon", "grace", "soft"), 15),
        (("pipelines", "shop"), 17),
        (("pipelines", "shop", "schedule"), 18),
        (("pipelines", "shop", "schema_changes"), 19),
        (("pipelines", "shop", "query"), 20),
        (("pipelines", "shop", "columns"), 21),
        (("pipelines", "shop", "streams", "public.country"), 24),
        (("pipelines", "shop", "streams", "public.country", "mode"), 25),
        (("pipelines", "shop2", "streams", "a.b"), 27),
        (("pipelines", "shop2", "streams", "a.b", "mode"), 28),
        (("many", "tables"), 30),
        (("many", "tables", "x"), 31),
    ],
)
def test_a_key_is_found_at_its_line(path: tuple[str, ...], line: int) -> None:
    assert LineIndex(TEXT).line(path) == line


def test_what_stands_in_an_inline_table_is_found_at_the_enclosing_key() -> None:
    assert LineIndex(TEXT).line(("pipelines", "shop", "schema_changes", "added")) == 19


def test_a_missing_key_is_placed_at_the_table_that_lacks_it() -> None:
    index = LineIndex(TEXT)
    assert index.line(("pipelines", "shop", "source")) == 17
    assert index.line(("nothing", "like", "it")) == 1


def test_text_in_strings_is_no_header() -> None:
    index = LineIndex(TEXT)
    assert index.line(("pipelines", "hidden")) == 17  # the first that made "pipelines"
    assert index.line(("also",)) == 1


def test_a_path_is_written_as_toml_would() -> None:
    assert dotted(("pipelines", "shop", "streams", 'a."b"\n')) == (
        'pipelines.shop.streams."a.\\"b\\"\\u000a"'
    )
