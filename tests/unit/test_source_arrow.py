"""Arrow of any flavour becomes canonical, exactly, or the row is named."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import time
import uuid

import pyarrow as pa
import pytest

from reconciler.connectors import arrow
from reconciler.connectors.ports import ConnectorError

WORDS = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float32", "float64", "decimal(10,2)", "decimal(38,0)", "text", "binary", "date", "time",
    "timestamp", "naive_timestamp", "uuid", "json", "interval", "null", "list<decimal(5,1)>",
    "list<list<uuid>>", "struct<a: int64, b: list<text>>", 'struct<"odd: name>": json>',
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_each_word_has_one_arrow_type_and_back(word: str) -> None:
    data_type = arrow.arrow_type(word)
    assert arrow.type_word(data_type) == word
    assert arrow.canonical(data_type) == data_type


@pytest.mark.parametrize(
    "word", ["string", "decimal(39,2)", "decimal(2,3)", "list<int64", "int", ""]
)
def test_a_word_that_is_no_type_is_refused_with_what_is_allowed(word: str) -> None:
    with pytest.raises(ValueError, match=r"type|precision|missing"):
        arrow.arrow_type(word)


def test_flavours_of_other_arrow_become_canonical() -> None:
    table = pa.table(
        {
            "dict": pa.array(["a", "b", None]).dictionary_encode(),
            "large": pa.array(["a", None, "c"], pa.large_string()),
            "ns": pa.array([1_000, 2_000, None], pa.timestamp("ns")),
            "zone": pa.array([0, None, 1], pa.timestamp("s", "Europe/Berlin")),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
            "wide": pa.array([decimal.Decimal("1.5"), None, None], pa.decimal256(50, 10)),
            "fixed": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)),
        }
    )
    schema = arrow.canonical_schema(table.schema)
    batch, misfits = arrow.Caster(table.schema, schema).apply(table.to_batches()[0])
    assert not misfits
    words = {f.name: f.type for f in arrow.to_schema(batch.schema).fields}
    assert words == {
        "dict": "text",
        "large": "text",
        "ns": "naive_timestamp",
        "zone": "timestamp",
        "map": "list<struct<key: text, value: int32>>",
        "wide": "text",
        "fixed": "list<int64>",
    }
    assert batch.column("map").to_pylist() == [[{"key": "k", "value": 1}], None, []]
    assert batch.column("fixed").to_pylist() == [[1, 2], None, [3, 4]]


def test_text_that_does_not_fit_is_named_by_row_and_never_null_in_silence() -> None:
    values, bad = arrow.cast(pa.array(["1.50", "nan", None, "1.005", " 2 "]), pa.decimal128(10, 2))
    assert set(bad) == {1, 3}
    assert "nan" in bad[1]
    assert "1.005" in bad[3]
    assert values.to_pylist()[0] == decimal.Decimal("1.50")
    assert values.to_pylist()[4] == decimal.Decimal("2.00")


def test_text_times_take_zones_as_they_are_and_utc_where_none_is_given() -> None:
    texts = pa.array(["2026-01-31 10:00:00", "2026-01-31T10:00:00+02:00", "soon"])
    instants, bad = arrow.cast(texts, pa.timestamp("us", "UTC"))
    assert instants.to_pylist()[:2] == [
        dt.datetime(2026, 1, 31, 10, tzinfo=dt.UTC),
        dt.datetime(2026, 1, 31, 8, tzinfo=dt.UTC),
    ]
    assert set(bad) == {2}


def test_what_holds_a_nan_is_no_json() -> None:
    lists = pa.array([[1.5, None], [1.5, math.nan], [math.inf]])
    column, misfits = arrow.cast(lists, arrow.JSON)
    assert column.to_pylist() == ["[1.5, null]", None, None]
    assert sorted(misfits) == [1, 2]


def test_uuid_and_json_out_of_text_are_checked() -> None:
    one = uuid.UUID(int=7)
    ids, bad = arrow.cast(pa.array([str(one), "no", None]), arrow.UUID)
    assert ids.to_pylist() == [one, None, None]
    assert set(bad) == {1}
    documents, bad = arrow.cast(pa.array(['{"a": 1}', "{", None]), arrow.JSON)
    assert documents.to_pylist()[0] == '{"a": 1}'
    assert set(bad) == {1}


def test_a_misfit_within_a_list_names_the_row_that_holds_it() -> None:
    lists = pa.array([["1"], None, [], ["2", "x"]])
    values, bad = arrow.cast(lists, pa.list_(pa.int64()))
    assert set(bad) == {3}
    assert values.to_pylist()[:3] == [[1], None, []]


def test_lists_that_all_misfit_take_no_time_by_the_square_of_their_number() -> None:
    began = time.process_time()
    _, bad = arrow.cast(pa.array([["x"]] * 40_000), pa.list_(pa.int64()))
    assert list(bad) == list(range(40_000))
    assert time.process_time() - began < 20  # the square takes one to three minutes


def test_a_field_that_a_struct_has_no_place_for_names_the_row_unless_it_is_null() -> None:
    wide = pa.array([{"a": 1, "b": 2}, {"a": 1, "b": None}, None])
    found, bad = arrow.cast(wide, pa.struct([("a", pa.int64())]))
    assert bad == {0: "b: there is no such field in struct<a: int64>"}
    assert found.to_pylist()[1:] == [{"a": 1}, None]


def test_numbers_do_not_become_times_nor_times_numbers() -> None:
    number, moment = pa.schema([("n", pa.int64())]), pa.schema([("n", pa.timestamp("us"))])
    with pytest.raises(ConnectorError, match="cannot become naive_timestamp"):
        arrow.Caster(number, moment)
    with pytest.raises(ConnectorError, match="cannot become int64"):
        arrow.Caster(moment, number)


_DAY, _NOON = dt.datetime(2026, 1, 31), dt.datetime(2026, 1, 31, 12)  # noqa: DTZ001
_DECIMAL = decimal.Decimal


@pytest.mark.parametrize(
    ("source", "target", "fits", "kept", "loses"),
    [
        (pa.int64(), pa.timestamp("us", "UTC"), None, None, 1_700_000_000),
        (pa.int32(), pa.date32(), None, None, 20_000),
        (pa.timestamp("us"), pa.int64(), None, None, _NOON),
        (pa.time64("us"), pa.int64(), None, None, dt.time(12)),
        (pa.timestamp("us"), pa.time64("us"), None, None, _NOON),
        (pa.timestamp("us"), pa.date32(), _DAY, _DAY.date(), _NOON),
        (pa.float64(), pa.decimal128(18, 2), 0.1, _DECIMAL("0.10"), 1.239),
        (pa.float64(), pa.decimal128(38, 9), 12345678.91, _DECIMAL("12345678.91"), 1e-10),
        (pa.decimal128(30, 2), pa.float64(), _DECIMAL("0.10"), 0.1, _DECIMAL(10**17) + 1),
        (pa.int64(), pa.float64(), 2**60, 2.0**60, 2**53 + 1),
        (pa.int64(), pa.float32(), 2**24, 2.0**24, 2**24 + 1),
        (pa.float64(), pa.float32(), 0.5, 0.5, 1e300),
        (pa.string(), pa.float64(), "-Infinity", float("-inf"), "1e400"),
        (pa.string(), pa.float32(), "0.5", 0.5, "1e40"),
        (pa.string(), pa.int64(), " 5", 5, "1_000"),
        (pa.string(), pa.float64(), "5e0 ", 5.0, "1_000"),
        (pa.string(), pa.decimal128(9, 1), "5", _DECIMAL(5), "1_000"),
        (pa.string(), pa.int8(), "-1", -1, "0xff"),
    ],
)
def test_a_value_that_would_be_rounded_or_guessed_is_named_and_the_others_are_kept(
    source: pa.DataType, target: pa.DataType, fits: object, kept: object, loses: object
) -> None:
    for values in ([fits, None, loses], [fits, None]):
        found, bad = arrow.cast(pa.array(values, source), target)
        assert set(bad) == ({2} if loses in values else set())
        assert found.to_pylist()[:2] == [kept, None]


_SOON = 2**31 - 2**24


@pytest.mark.parametrize(
    ("kind", "raw", "texts"),
    [
        (pa.date32(), [2**31 - 1, 1 - 2**31, 0], ["infinity", "-infinity", "1970-01-01"]),
        (pa.date32(), [_SOON, None, 9_000_000], [None, None, "26611-03-02"]),
        (pa.timestamp("us"), [2**63 - 1, 0], ["infinity", "1970-01-01 00:00:00.000000"]),
        (pa.timestamp("us", "UTC"), [1 - 2**63, 2**60], ["-infinity", None]),
        (pa.timestamp("ms"), [2**62], [None]),
        (pa.timestamp("ns"), [2**62], ["2116-02-20 23:53:38.427387904"]),
        (pa.time64("us"), [86_400_000_000, 0], ["24:00:00", "00:00:00.000000"]),
    ],
)
def test_a_time_becomes_the_text_that_it_has_or_none(
    kind: pa.DataType, raw: list[int | None], texts: list[str | None]
) -> None:
    storage = pa.int32() if kind.bit_width == 32 else pa.int64()
    found, bad = arrow.cast(pa.array(raw, storage).view(kind), pa.string())
    assert found.to_pylist() == texts
    assert set(bad) == {
        row for row, value in enumerate(raw) if value is not None and texts[row] is None
    }


def test_a_list_with_an_infinite_time_is_set_aside_and_no_words_stand_for_it() -> None:
    lists = pa.array([[0], [2**31 - 1]], pa.list_(pa.int32())).view(pa.list_(pa.date32()))
    texts, bad = arrow.cast(lists, pa.string())
    assert (texts.to_pylist(), set(bad)) == (['["1970-01-01"]', None], {1})


def test_a_list_with_a_time_beyond_its_day_is_invalid_and_one_with_24_00_is_not() -> None:
    raw = pa.array([[86_400_000_000, 0], [-1], None], pa.list_(pa.int64()))
    batch = pa.record_batch({"t": raw.view(pa.list_(pa.time64("us")))})
    assert set(arrow.invalid(batch)) == {1}


@pytest.mark.parametrize("word", ["time", "timestamp", "naive_timestamp", "date"])
@pytest.mark.parametrize("text", ["1731120101234", "1700000000", "10", "2026-01-31x10:00"])
def test_a_number_that_counts_seconds_or_milliseconds_is_no_time_of_day_nor_a_date(
    word: str, text: str
) -> None:
    assert set(arrow.cast(pa.array([text]), arrow.arrow_type(word))[1]) == {0}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        (pa.array(["3.4028235e38", "1.5"]), "decimal(38,10)"),
        (pa.array(["1811468.86857", "1.5"]), "decimal(38,34)"),
        (pa.array(["0.41143037793023778010024308239850215048133", "1.5"]), "decimal(9,2)"),
        (pa.array([1e25, 1.5]), "decimal(38,20)"),
        (
            pa.array([decimal.Decimal("9453519.8"), decimal.Decimal("1.5")], pa.decimal128(35, 12)),
            "decimal(38,35)",
        ),
    ],
)
def test_a_number_with_too_many_digits_for_a_decimal_does_not_become_another(
    values: pa.Array, word: str
) -> None:
    cast, misfits = arrow.cast(values, arrow.arrow_type(word))
    assert (cast[1].as_py(), set(misfits)) == (decimal.Decimal("1.5"), {0})


@pytest.mark.parametrize("zero", ["0e50", "0E+3", "0E-50"])
def test_a_nought_is_one_however_it_is_written(zero: str) -> None:
    cast, misfits = arrow.cast(pa.array([zero, "x"]), arrow.arrow_type("decimal(5,2)"))
    assert (cast[0].as_py(), set(misfits)) == (0, {1})


def test_the_greatest_float32_is_one_beside_what_is_none() -> None:
    cast, misfits = arrow.cast(pa.array(["3.4028235e38", "3.5e38"]), pa.float32())
    assert (cast[0].as_py() > 3.4e38, set(misfits)) == (True, {1})


def test_of_a_duration_what_lies_beyond_the_microsecond_is_cut() -> None:
    cast, misfits = arrow.cast(pa.array([1_500], pa.duration("ns")), pa.int64())
    assert (cast.to_pylist(), misfits) == ([1], {})
