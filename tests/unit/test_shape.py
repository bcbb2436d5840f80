"""Values that do not fit their target are set aside with their reason, never made NULL (F)."""

from __future__ import annotations

import pyarrow as pa

from reconciler.run.shape import Shape
from reconciler.schema.decide import ColumnRule

_TARGET = pa.schema([("id", pa.int64()), ("amount", pa.int32()), ("_run_id", pa.int64())])
_RULES = (ColumnRule("id", "id", "as_is"), ColumnRule("amount", "amount", "cast"))


def _shape(rules: tuple[ColumnRule, ...] = _RULES) -> Shape:
    return Shape(rules, _TARGET, ["id"], own={"_run_id": 7})


def test_rows_that_fit_carry_the_run_that_brought_them() -> None:
    batch = pa.record_batch({"id": [1, 2], "amount": pa.array(["10", None])})
    shaped, misfits = _shape().apply(batch)
    assert shaped.to_pylist() == [
        {"id": 1, "amount": 10, "_run_id": 7},
        {"id": 2, "amount": None, "_run_id": 7},
    ]
    assert misfits == []


def test_a_value_that_does_not_fit_takes_its_row_aside_with_key_and_reason() -> None:
    batch = pa.record_batch({"id": [1, 2], "amount": pa.array(["many", "3"])})
    shaped, misfits = _shape().apply(batch)
    assert [row["id"] for row in shaped.to_pylist()] == [2]
    assert misfits[0].place == "id=1"
    assert "amount" in misfits[0].reason
    assert "many" in misfits[0].raw


def test_a_column_that_the_source_dropped_is_null() -> None:
    shaped, misfits = _shape().apply(pa.record_batch({"id": [1]}))
    assert shaped.to_pylist() == [{"id": 1, "amount": None, "_run_id": 7}]
    assert misfits == []


def test_a_column_that_is_ignored_is_not_written() -> None:
    rules = (ColumnRule("id", "id", "as_is"), ColumnRule("amount", "", "ignore"))
    shaped, _ = _shape(rules).apply(pa.record_batch({"id": [1], "amount": [5]}))
    assert shaped.to_pylist()[0]["amount"] is None


def test_infinite_times_are_shown_and_not_choked_on() -> None:
    times = pa.array([2**63 - 1], pa.int64()).cast(pa.timestamp("us", "UTC"))
    batch = pa.record_batch({"id": [1], "amount": pa.array(["x"]), "at": times})
    _, misfits = _shape().apply(batch)
    assert len(misfits) == 1
