"""Rows of Parquet files and of the Arrow files that `datasets` saves; numbers of named classes become their names."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from handscroll.data.table.files import Source
from handscroll.text.rows import BATCH, arrow, check_groups

Values = dict[str, Any]


def parquet_rows(source: Source) -> Iterator[Values]:
    """The rows of a Parquet file.

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    with arrow(source.path):
        from pyarrow import parquet

        where: Any = source.path if source.data is None else io.BytesIO(source.data)
        with parquet.ParquetFile(where) as table:
            check_groups(table.metadata, table.schema_arrow.names, source.path)
            named = _named(table.schema_arrow.metadata)
            for batch in table.iter_batches(batch_size=BATCH):
                yield from map(named, batch.to_pylist())


def arrow_rows(source: Source) -> Iterator[Values]:
    """The rows of an Arrow file: a stream, as `datasets` writes it, or a file with an index at its end (Feather).

    Raises:
        DataError: pyarrow is not installed, or the file is damaged.
    """
    with arrow(source.path, "Arrow file"):
        import pyarrow

        data = pyarrow.memory_map(str(source.path)) if source.data is None else pyarrow.BufferReader(source.data)
        indexed = data.read(6) == b"ARROW1"
        data.seek(0)
        reader: Any = pyarrow.ipc.open_file(data) if indexed else pyarrow.ipc.open_stream(data)
        named = _named(reader.schema.metadata)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if indexed else reader
        for batch in batches:
            yield from map(named, batch.to_pylist())


def _named(metadata: Any) -> Callable[[Values], Values]:
    """What gives a row the names of its classes, which `datasets` keeps beside the schema (`ClassLabel`)."""
    try:
        about = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return lambda values: values
    classes = {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }
    if not classes:
        return lambda values: values

    def name(values: Values) -> Values:
        for column, names in classes.items():
            number = values.get(column)
            if isinstance(number, int):  # -1 stands for a label that is kept secret (test sets of GLUE)
                values[column] = names[number] if 0 <= number < len(names) else None
        return values

    return name
