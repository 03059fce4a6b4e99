"""Parquet and Arrow in batches of rows. pyarrow is imported only for such a file."""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial

from .archives import Member, random_access
from .cli import DataError
from .formats import ARROW_STREAM, PARQUET

BATCH_ROWS = 1000  # of Parquet; the batches of Arrow are as they were written


@contextlib.contextmanager
def open_columns(member: Member) -> Iterator[tuple]:
    """-> the schema; batches(column), which gives pyarrow's record batches with one column, by default with all.

    Arrow's own form is mapped into memory as it is: a batch must be validated before its values are read.
    Raises EOFError for what pyarrow cannot read, also inside the with statement; DataError if pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{member.name} is {member.form}. Run pip install pyarrow, or use JSON lines.") from None
    try:
        if member.form == ARROW_STREAM:
            reader = pyarrow.ipc.open_stream(member.stream)
            yield reader.schema, partial(with_column, reader)
            return
        with random_access(member.stream, member.name) as file:
            if member.form == PARQUET:
                reader = pyarrow.parquet.ParquetFile(file)
                yield reader.schema_arrow, partial(parquet_batches, reader)
            else:
                reader = pyarrow.ipc.open_file(file)
                yield reader.schema, partial(with_column, map(reader.get_batch, range(reader.num_record_batches)))
    except pyarrow.ArrowException as error:
        raise EOFError(str(error).partition("\n")[0][:200]) from None


def parquet_batches(reader, column: str | None = None) -> Iterator:
    return reader.iter_batches(BATCH_ROWS, columns=None if column is None else [column])


def with_column(batches: Iterable, column: str | None = None) -> Iterator:
    return (batch if column is None else batch.select([batch.schema.names.index(column)]) for batch in batches)
