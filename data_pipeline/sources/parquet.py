"""Parquet: a document per row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.exits import ConfigError
from data_pipeline.document import Record
from data_pipeline.sources.magic import PARQUET, found, head_of, not_what_its_name_says, opened
from data_pipeline.sources.rows import STATED, no_text_field, record_of_row
from data_pipeline.sources.slices import Format, Slice, damaged, too_large

BATCH_ROWS, BATCH_BYTES = 256, 16 << 20


def _check(path: Path, text_field: str) -> None:
    """Look at the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (head := head_of(path)).startswith(PARQUET):
        raise not_what_its_name_says(path, "a Parquet file", f"holds {found(head)}")
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise not_what_its_name_says(path, "a Parquet file", f"is broken after row 0 ({error})") from error
    if text_field not in schema.names:
        raise no_text_field(path, text_field, set(schema.names))
    kind = schema.field(text_field).type
    if not _is_text(kind):
        raise ConfigError(
            f"{path} has no text in the field {text_field!r}, but {kind}: "
            "set curate.sources[].text_field to the one that holds the text"
        )


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def _slices(path: Path, locator: str, slice_bytes: int) -> list[Slice]:
    """Row groups, one after another until they have `slice_bytes` bytes."""
    import pyarrow.parquet as pq

    metadata, size = pq.read_metadata(path), path.stat().st_size
    slices: list[Slice] = []
    begin = first = rows = taken = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows, taken = rows + group.num_rows, taken + group.total_byte_size
        if taken >= slice_bytes or number + 1 == metadata.num_row_groups:
            slices.append(Slice(str(path), locator, size, begin, number + 1, first))
            begin, first, taken = number + 1, rows, 0
    return slices


def _records(slice: Slice, text_field: str, largest: int) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with opened(slice) as handle, pq.ParquetFile(handle) as file:
        columns = [name for name in ("id", text_field, *STATED) if name in file.schema_arrow.names]
        first = slice.first
        for number in range(slice.begin, slice.end):
            group = file.metadata.row_group(number)
            rows = first
            if group.num_rows == 1 and _bytes(group, text_field) > largest:
                yield too_large(f"{slice.locator}#{rows + 1}")  # unread: pyarrow holds a cell several times
                first += 1
                continue
            # As many rows as fill a batch, for rows of equal size: a row group is in memory once, whatever is in it.
            batch_rows = max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)))
            try:
                for batch in file.iter_batches(batch_size=batch_rows, row_groups=[number], columns=columns):
                    for row, size in enumerate(_sizes(batch.column(text_field))):
                        rows += 1
                        place = f"{slice.locator}#{rows}"
                        yield too_large(place) if size > largest else _record(batch, row, place, text_field)
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk's trouble, not the file's
                yield damaged(f"{slice.locator}#{rows + 1}")
            first += group.num_rows


def _bytes(group: Any, name: str) -> int:
    """Of a column in a row group, before compression."""
    columns = (group.column(number) for number in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)


def _sizes(column: Any) -> list[int]:
    """UTF-8 bytes of each text; 0 where there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_null(column.type):
        return [0] * len(column)
    if pa.types.is_dictionary(column.type):
        return [
            0 if size is None else size for size in pc.binary_length(column.dictionary).take(column.indices).to_pylist()
        ]
    return list(pc.fill_null(pc.binary_length(column), 0).to_pylist())


def _record(batch: Any, row: int, place: str, text_field: str) -> Record:
    try:
        values = {name: batch.column(name)[row].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return Record("", "text", place, reason="broken_record")
    if not isinstance(values[text_field], str):
        return Record("", "text", place, reason="broken_record")
    return record_of_row(values, place, text_field)


PARQUET_FILE = Format(_check, _slices, _records)
