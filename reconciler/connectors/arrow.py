"""The Arrow types that data moves in, and how other Arrow becomes one of them.

Drivers and file readers hand over Arrow of many flavours. Between source and destination there is
one Arrow type per word of ``reconciler.schema.model``, chosen so that Parquet and DuckDB both know
it by nature: ``uuid`` is ``arrow.uuid``, ``json`` is ``arrow.json`` over text, ``decimal`` is
``decimal128``, an instant is ``timestamp[us, UTC]``. What no such type can hold is ``text``.

``interval`` is ``month_day_nano``, which Parquet cannot hold: sources send intervals as ``text``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from catalog.records import ErrorClass
from reconciler.connectors.parse import parser
from reconciler.connectors.ports import ConnectorError
from reconciler.schema import types
from reconciler.schema.model import Field, Schema

UUID = pa.uuid()
JSON = pa.json_(pa.string())
_BY_WORD: dict[str, pa.DataType] = {
    "null": pa.null(),
    "bool": pa.bool_(),
    **{f"{sign}int{width}": getattr(pa, f"{sign}int{width}")()
       for sign in ("", "u") for width in (8, 16, 32, 64)},
    "float32": pa.float32(),
    "float64": pa.float64(),
    "text": pa.string(),
    "binary": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us", "UTC"),
    "naive_timestamp": pa.timestamp("us"),
    "uuid": UUID,
    "json": JSON,
    "interval": pa.month_day_nano_interval(),
}  # fmt: skip
_WORDS = {data_type: word for word, data_type in _BY_WORD.items()}
_LAST_DAY = 10_000_000
"""Since 1970, or before: Arrow writes no year beyond 32767, and this day is in 29349."""


# -- words and types ---------------------------------------------------------------------------


def type_word(data_type: pa.DataType) -> str:
    """The canonical word of a canonical Arrow type."""
    word = _WORDS.get(data_type)
    if word is not None:
        return word
    if pa.types.is_decimal128(data_type):
        return f"decimal({data_type.precision},{data_type.scale})"
    if pa.types.is_list(data_type):
        return f"list<{type_word(data_type.value_type)}>"
    if pa.types.is_struct(data_type):
        return types.struct_word((f.name, type_word(f.type)) for f in data_type)
    return type_word(canonical(data_type))


def arrow_type(word: str) -> pa.DataType:
    """The Arrow type of a word. Raises ``ValueError`` that says what is allowed."""
    return _arrow(types.parse(word))


def _arrow(parsed: types.Type) -> pa.DataType:
    if parsed.name == "decimal":
        return pa.decimal128(parsed.precision, parsed.scale)
    if parsed.name == "list":
        return pa.list_(_arrow(parsed.fields[0][1]))
    if parsed.name == "struct":
        return pa.struct([pa.field(name, _arrow(item)) for name, item in parsed.fields])
    return _BY_WORD[parsed.name]


def to_schema(schema: pa.Schema, key: tuple[str, ...] = ()) -> Schema:
    """An Arrow schema of any flavour in canonical words."""
    fields = tuple(Field(f.name, type_word(canonical(f.type)), f.nullable) for f in schema)
    return Schema(fields, tuple(key))


def to_arrow(schema: Schema) -> pa.Schema:
    """A schema as Arrow. Every column may be NULL: a kept or added column has to."""
    return pa.schema([pa.field(f.name, arrow_type(f.type)) for f in schema.fields])


# -- canonical forms ---------------------------------------------------------------------------


def canonical(data_type: pa.DataType) -> pa.DataType:
    """The canonical type that values of ``data_type`` move in."""
    if data_type in _WORDS:
        return data_type
    if isinstance(data_type, pa.BaseExtensionType):
        if data_type.extension_name == "arrow.json":
            return JSON
        return canonical(data_type.storage_type)
    for matches, result in _RULES:
        if matches(data_type):
            return result(data_type) if callable(result) else result
    return pa.string()


def canonical_schema(schema: pa.Schema) -> pa.Schema:
    """Names kept, types canonical, metadata dropped, every column nullable."""
    return pa.schema([pa.field(f.name, canonical(f.type)) for f in schema])


def _list(data_type: pa.DataType) -> pa.DataType:
    return pa.list_(canonical(data_type.value_type))


def _struct(data_type: pa.DataType) -> pa.DataType:
    return pa.struct([pa.field(f.name, canonical(f.type)) for f in data_type])


def _pair(data_type: pa.DataType) -> pa.DataType:
    return pa.struct(
        [("key", canonical(data_type.key_type)), ("value", canonical(data_type.item_type))]
    )


def _decimal(data_type: pa.DataType) -> pa.DataType:
    if data_type.precision > types.MAX_PRECISION or not 0 <= data_type.scale <= data_type.precision:
        return pa.string()
    return pa.decimal128(data_type.precision, data_type.scale)


def _any_binary(data_type: pa.DataType) -> bool:
    t = pa.types
    return bool(
        t.is_large_binary(data_type)
        or t.is_fixed_size_binary(data_type)
        or t.is_binary_view(data_type)
    )


def _timestamp(data_type: pa.DataType) -> pa.DataType:
    return pa.timestamp("us", "UTC" if data_type.tz else None)


def _any_list(data_type: pa.DataType) -> bool:
    t = pa.types
    return bool(
        t.is_list(data_type) or t.is_large_list(data_type) or t.is_fixed_size_list(data_type)
    )


_RULES: tuple[tuple[Callable[[pa.DataType], bool], Any], ...] = (
    (pa.types.is_dictionary, lambda t: canonical(t.value_type)),
    (pa.types.is_run_end_encoded, lambda t: canonical(t.value_type)),
    (pa.types.is_float16, pa.float32()),
    (pa.types.is_decimal, _decimal),
    (_any_binary, pa.binary()),
    (pa.types.is_date, pa.date32()),
    (pa.types.is_time, pa.time64("us")),
    (pa.types.is_timestamp, _timestamp),
    (pa.types.is_duration, pa.int64()),
    (_any_list, _list),
    (pa.types.is_map, lambda t: pa.list_(_pair(t))),
    (pa.types.is_struct, _struct),
)


# -- casting -----------------------------------------------------------------------------------

Misfits = dict[int, str]
"""Row number in the batch to reason."""


class Caster:
    """Brings batches of one schema into another; rows that do not fit are named, never NULLed.

    Made once per read; columns that need nothing cost nothing. Raises ``ConnectorError``
    (permanent) where no value of a column could ever become the type asked for.
    """

    def __init__(self, source: pa.Schema, target: pa.Schema) -> None:
        self.schema = target
        self._work: list[tuple[int, pa.Field]] = []
        for i, field in enumerate(self.schema):
            _check_possible(source.field(i), field)
            if source.field(i).type != field.type:
                self._work.append((i, field))

    def apply(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Misfits]:
        """All rows in the target's types, misfits with NULL in their place, and their reasons."""
        columns = batch.columns
        misfits: Misfits = {}
        for i, field in self._work:
            columns[i], bad = cast(columns[i], field.type)
            for row, reason in bad.items():
                misfits.setdefault(row, f"column {field.name!r}: {reason}")
        return pa.RecordBatch.from_arrays(columns, schema=self.schema), misfits


def invalid(batch: pa.RecordBatch) -> Misfits:
    """Rows with a value that is none of its type: text that is no UTF-8, a time beyond its day.

    Not all who hand over Arrow look at what they hand over, and a destination that does refuses the
    whole batch once it is committed.
    """
    misfits: Misfits = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for row, reason in _invalid(column).items():
            misfits.setdefault(row, f"column {name!r}: {reason}")
    return misfits


def _invalid(column: pa.Array) -> Misfits:
    if pa.types.is_time(column.type):
        raw = column.view(pa.int32() if column.type.bit_width == 32 else pa.int64())
        beyond = pc.or_(pc.less(raw, 0), pc.greater(raw, _last_in_words(column.type) + 1))
        rows = pc.indices_nonzero(beyond).to_pylist()
        return {row: f"{raw[row]} {column.type.unit} is no time of a day" for row in rows}
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return {}
    misfits: Misfits = {}
    for row in range(len(column)):
        try:
            column.take(pa.array([row])).validate(full=True)
        except pa.ArrowInvalid as error:
            if " 86400000000 is not within" in str(error):
                continue  # 24:00, within a list or struct
            what = "UTF-8 text" if "UTF8" in str(error) else f"{type_word(column.type)}: {error}"
            misfits[row] = f"{python_value(column[row])!r:.80} is no {what}"
    return misfits


def drop_rows(batch: pa.RecordBatch, rows: Misfits) -> pa.RecordBatch:
    """The batch without these rows."""
    if not rows:
        return batch
    return batch.filter(pa.array([i not in rows for i in range(batch.num_rows)], pa.bool_()))


def cast(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Misfits]:
    """``array`` as ``target``, exactly: a value that would lose something is a misfit.

    Text is parsed: times without a zone are UTC for ``timestamp``, and those with one become UTC
    for ``naive_timestamp``.
    """
    array = _plain(array)
    if array.type == target:
        return array, {}
    if pa.types.is_list(target) and _any_list(array.type):
        return _cast_list(array, target)
    if pa.types.is_struct(target) and pa.types.is_struct(array.type):
        return _cast_struct(array, target)
    if target == pa.string() and _is_time(array.type):
        return _times_as_text(array)
    if _at_once(array.type, target):
        try:
            result = _fast(array, target)
            if _is_exact(array, result):
                return result, {}
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return _by_value(array, target)


def _at_once(source: pa.DataType, target: pa.DataType) -> bool:
    """Whether Arrow's own cast means by it what is meant here."""
    if target in (UUID, JSON) or _is_guess(source, target):
        return False
    return bool(target != pa.bool_() or source == pa.string())


def _is_guess(source: pa.DataType, target: pa.DataType) -> bool:
    """Times out of numbers, and numbers out of times: nobody said what they count, since when."""
    return (_is_number(source) and _is_time(target)) or (_is_time(source) and _is_number(target))


def _is_number(data_type: pa.DataType) -> bool:
    t = pa.types
    return bool(t.is_integer(data_type) or t.is_floating(data_type) or t.is_decimal(data_type))


def _is_time(data_type: pa.DataType) -> bool:
    return pa.types.is_temporal(data_type) and not pa.types.is_duration(data_type)


def _is_exact(array: pa.Array, result: pa.Array) -> bool:
    """Whether each value is still what it was, where Arrow's casts round in silence."""
    was, now, t = array.type, result.type, pa.types
    if t.is_floating(was) and t.is_floating(now):
        differs = pc.and_(pc.is_inf(result), pc.is_finite(array))
    elif t.is_decimal(was) and t.is_floating(now):
        differs = pc.not_equal(result.cast(pa.string()).cast(was), array)
    elif t.is_timestamp(was) and t.is_date(now):
        differs = pc.not_equal(result.cast(was, safe=False), array)
    elif t.is_timestamp(was) and t.is_time(now):
        differs = array.is_valid()
    elif t.is_string(was) and t.is_floating(now):
        infinite = array.filter(pc.is_inf(result))
        differs = pc.invert(pc.match_substring(infinite, "inf", ignore_case=True))
    elif t.is_string(was) and t.is_integer(now):  # 0xff is -1 in an int8
        differs = pc.match_substring(array, "x", ignore_case=True)
    elif t.is_decimal(now) and t.is_decimal(was):  # what overflows is another number to Arrow
        return bool(was.precision - was.scale + now.scale <= types.MAX_PRECISION)
    elif t.is_decimal(now) and (t.is_string(was) or t.is_floating(was)):
        texts = array.cast(pa.string())
        long = pc.greater(pc.binary_length(texts), types.MAX_PRECISION - now.scale)
        differs = pc.or_(long, pc.match_substring(texts, "e", ignore_case=True))
    else:
        return True
    return not pc.any(differs).as_py()


def _times_as_text(array: pa.Array) -> tuple[pa.Array, Misfits]:
    """As Arrow writes them, but for what it has no right words for: infinity, 24:00, far years."""
    words = array.cast(pa.string())
    raw = array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    most = _last_in_words(array.type)
    far = pc.or_(pc.greater(raw, most), pc.less(raw, -most))
    if not pc.any(far).as_py():
        return words, {}
    texts, misfits = words.to_pylist(), Misfits()
    for row in pc.indices_nonzero(far).to_pylist():
        value = python_value(array[row])
        if value in ("infinity", "-infinity"):
            texts[row] = value
        elif pa.types.is_time(array.type) and raw[row].as_py() == most + 1:
            texts[row] = "24:00:00"
        else:
            texts[row], misfits[row] = None, f"{value!r} lies too far away to be written as a text"
    return pa.array(texts, pa.string()), misfits


def _last_in_words(kind: pa.DataType) -> int:
    """The greatest value that Arrow writes right: it counts years in sixteen bits."""
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    day = 1 if pa.types.is_date32(kind) else 86_400 * per_second[getattr(kind, "unit", "ms")]
    return day - 1 if pa.types.is_time(kind) else min(day * _LAST_DAY, 2**63 - 1)


def _plain(array: pa.Array) -> pa.Array:
    """Without the driver's wrapping: dictionary, run ends, or an extension of its own."""
    if isinstance(array, pa.ExtensionArray) and array.type not in (UUID, JSON):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if pa.types.is_run_end_encoded(array.type):
        return pc.run_end_decode(array)
    if pa.types.is_map(array.type):
        pair = pa.struct([("key", array.type.key_type), ("value", array.type.item_type)])
        return array.cast(pa.list_(pair))
    return array


def _fast(array: pa.Array, target: pa.DataType) -> pa.Array:
    if array.type in (UUID, JSON):
        if array.type == UUID:
            raise pa.ArrowNotImplementedError("by value")
        array = array.storage
    if pa.types.is_duration(array.type):
        return array.cast(pa.duration("us"), safe=array.type.unit != "ns").cast(pa.int64())
    if pa.types.is_string(array.type) and pa.types.is_timestamp(target) and target.tz:
        try:
            return array.cast(target)
        except pa.ArrowInvalid:
            return pc.assume_timezone(array.cast(pa.timestamp("us")), "UTC")
    if {_kind_of_real(array.type), _kind_of_real(target)} == {"decimal", "float"}:
        return array.cast(pa.string()).cast(target)  # Arrow's own way is a few digits off
    # Times are of microseconds: what a finer unit holds beyond is cut, not refused.
    finer = pa.types.is_temporal(array.type) and getattr(array.type, "unit", "") == "ns"
    return array.cast(target, safe=not (finer and pa.types.is_temporal(target)))


def _kind_of_real(data_type: pa.DataType) -> str:
    if pa.types.is_decimal(data_type):
        return "decimal"
    return "float" if pa.types.is_floating(data_type) else ""


def _by_value(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Misfits]:
    """Value by value, once a block has a misfit, so that only the misfits are lost."""
    if target == JSON and pa.types.is_large_string(array.type):
        array = array.cast(pa.string())
    convert = parser(type_word(target))
    values: list[Any] = []
    misfits: Misfits = {}
    for i, scalar in enumerate(array):
        value = None
        if scalar.is_valid:
            try:
                value = convert(_value(scalar))
            except (ValueError, ArithmeticError, TypeError) as error:
                misfits[i] = str(error)
        values.append(value)
    if target in (UUID, JSON):
        storage = pa.array(values, target.storage_type)
        return pa.ExtensionArray.from_storage(target, storage), misfits
    return pa.array(values, target), misfits


def _value(scalar: pa.Scalar) -> Any:
    """As ``python_value``; words in place of a whole list or struct are no value of it."""
    value = python_value(scalar)
    if isinstance(value, str) and pa.types.is_nested(scalar.type):
        raise ValueError(value)
    return value


def python_value(scalar: pa.Scalar) -> Any:
    """The value as Python has it; words for a time that lies beyond Python's years, and the bytes
    of a text that is none."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        is_text = isinstance(scalar, pa.StringScalar | pa.LargeStringScalar)
        words = f"a {type_word(scalar.type)} of bytes"
        return scalar.as_buffer().to_pybytes() if is_text else words
    except (OverflowError, ValueError):
        raw = getattr(scalar, "value", None)
        if isinstance(raw, int):
            limit = 2**31 - 1 if pa.types.is_date32(scalar.type) else 2**63 - 1
            return {limit: "infinity", -limit: "-infinity"}.get(raw, f"{raw} since 1970")
        return f"a {type_word(canonical(scalar.type))} with times beyond the year 9999"


def _cast_list(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Misfits]:
    if pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    values, bad = cast(array.flatten(), target.value_type)
    offsets = list_offsets(array)
    result = pa.ListArray.from_arrays(offsets, values, type=target, mask=array.is_null())
    return result, rows_of(bad, offsets)


def list_offsets(array: pa.Array) -> pa.Array:
    """Where each list begins among all lists' values, and where the last one ends."""
    ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0))
    return pa.concat_arrays([pa.array([0], pa.int32()), ends.cast(pa.int32())])


def rows_of(bad: Misfits, offsets: pa.Array) -> Misfits:
    """From the position among all lists' values to the row whose list holds it."""
    misfits: Misfits = {}
    bounds = offsets.to_pylist() if bad else []
    for position, reason in bad.items():
        misfits.setdefault(bisect_right(bounds, position) - 1, reason)
    return misfits


def _cast_struct(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Misfits]:
    children, misfits = [], {}
    have = {f.name: i for i, f in enumerate(array.type)}
    flat = array.flatten()
    for member in target:
        if member.name not in have:
            children.append(pa.nulls(len(array), member.type))
            continue
        child, bad = cast(flat[have[member.name]], member.type)
        children.append(child)
        misfits.update({row: f"{member.name}: {why}" for row, why in bad.items()})
    for name in have.keys() - {member.name for member in target}:
        for row in pc.indices_nonzero(flat[have[name]].is_valid()).to_pylist():
            misfits.setdefault(row, f"{name}: there is no such field in {type_word(target)}")
    return pa.StructArray.from_arrays(children, fields=list(target), mask=array.is_null()), misfits


def _check_possible(source: pa.Field, target: pa.Field) -> None:
    """Times out of numbers or the reverse, and lists or structs out of anything else, are guesses:
    refused.
    """
    nested = pa.types.is_nested(target.type) and not pa.types.is_nested(source.type)
    if _is_guess(source.type, target.type) or (nested and not pa.types.is_null(source.type)):
        raise ConnectorError(
            ErrorClass.PERMANENT,
            f"column {source.name!r} holds {type_word(source.type)} and cannot become "
            f"{type_word(target.type)}; name another type in `columns`, or convert it in a `query`",
        )
