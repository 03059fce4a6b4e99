"""Parquet and Arrow to rows, with the names of labels instead of their numbers where the schema has them."""

import json
from collections.abc import Iterator

from ..archives import Member
from ..cli import DataError
from ..columnar import BATCH_ROWS, open_columns

LISTS = ("Sequence", "List", "LargeList")  # types of the datasets library


def columnar_rows(member: Member, path: str, max_bytes: int) -> Iterator[dict]:
    """The rows of a file, {column: value}; binary values are decoded if they are UTF-8.

    Raises DataError if the file is damaged or has more than max_bytes in memory, or pyarrow is missing.
    """
    number = size = 0
    try:
        with open_columns(member) as (schema, batches):
            features = features_of(schema)
            names = {column: labels for column, feature in features.items() if (labels := label_names(feature))}
            for batch in batches():
                batch.validate(full=True)
                size += batch.nbytes
                if size > max_bytes:
                    rows = f"{max_bytes >> 20:,} MB of rows"
                    raise DataError(f"{path} has more than {rows}. Split it into several files.")
                for start in range(0, batch.num_rows, BATCH_ROWS):
                    for values in batch.slice(start, BATCH_ROWS).to_pylist():
                        number += 1
                        yield {key: named(value, names.get(key, ())) for key, value in values.items()}
    except (EOFError, UnicodeDecodeError, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"{path} cannot be read after row {number}: {reason}.") from None


def features_of(schema) -> dict:
    """The columns' types, as the datasets library stores them in the schema; {} without them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return features if isinstance(features, dict) else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}


def label_names(feature) -> tuple[str, ...]:
    """The names of a ClassLabel, or of a list of them; () for another type."""
    if isinstance(feature, list) and len(feature) == 1:
        return label_names(feature[0])
    if not isinstance(feature, dict):
        return ()
    if feature.get("_type") in LISTS:
        return label_names(feature.get("feature"))
    names = feature.get("names")
    named = feature.get("_type") == "ClassLabel" and isinstance(names, list)
    return tuple(names) if named and all(isinstance(name, str) for name in names) else ()


def named(value, names: tuple[str, ...]):
    """A value with its labels by name; an index without a name, such as the -1 of an unlabelled row, stays."""
    if isinstance(value, list):
        return [named(each, names) for each in value]
    if type(value) is int and 0 <= value < len(names):
        return names[value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value
