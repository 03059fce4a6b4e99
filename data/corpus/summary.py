"""What was prepared, in words: sizes, formats, and all that was dropped or damaged."""

import os
import shlex

from ..cli import DataError, count, warn
from ..formats import COMPRESSED, CONVERT, promised
from .layout import BLANK, BLANK_WRAPPED, LINE, WRAPPED
from .shards import BLOCKS, HELD_OUT, TRAIN

LAYOUTS = {  # how the layouts of plain text are printed
    LINE: "one document per line",
    BLANK: "documents separated by blank lines",
    WRAPPED: "one document per paragraph of wrapped lines",
    BLANK_WRAPPED: "documents of wrapped lines, separated by blank lines",
}
PRINTED_COUNTS = {  # how some counts are printed; in the manifest they keep their names
    "documents dropped, being empty": "empty documents dropped",
    "documents dropped, being short": "documents shorter than --min-tokens dropped",
    "documents dropped, being unknown": "documents above --max-unknown dropped",
    "documents dropped, all of them having come before": "documents with only duplicate paragraphs dropped",
    "paragraphs dropped, having come before": "duplicate paragraphs dropped",
    "documents cut, being longer than 16 MB": "documents longer than 16 MB split",
    "lines that are no JSON": "lines that are not JSON",
}


def print_summary(manifest: dict) -> None:
    """Prints the sizes of both parts, the formats read, and what was dropped; damaged files on stderr."""
    parts = manifest["shards"]
    if manifest["hold_out"] == BLOCKS:
        parts = {"corpus": parts[TRAIN] + parts[HELD_OUT]}
    for part, shards in parts.items():
        tokens, documents = sum(shard["tokens"] for shard in shards), sum(shard["documents"] for shard in shards)
        print(f"{part:9} {tokens:,} tokens in {count(documents, 'document')}, {count(len(shards), 'shard')}")
    if manifest["hold_out"] == BLOCKS:
        share = manifest["options"]["held_out"]
        print(f"held-out  {share:.1%} of the blocks, as the documents are too few to hold out whole ones")
    kinds = (f"{LAYOUTS.get(kind, kind)} ({count(number, 'file')})" for kind, number in manifest["read_as"].items())
    print(f"read as   {', '.join(kinds)}")
    if manifest["counts"]:
        print(f"note      {format_counts(manifest['counts'])}")
    for note in manifest["notes"]:
        print(f"note      {note}")
    for damage in manifest["damaged"]:
        warn(format_damage(damage))
    for name, (lost, lines) in manifest["lost_lines"].items():
        found = f"{lost:,} of the {lines:,} lines of {name} ({lost / lines:.1%}) are not UTF-8, and were dropped."
        cure = f"convert it: {CONVERT} {shlex.quote(name)} > NEW, and use NEW"
        if not os.path.isfile(name) or {*promised(name)}.intersection(COMPRESSED):  # in an archive, on the hub
            cure = f"unpack it, convert it with {CONVERT}, and use that"
        warn(f"{found} If the file is in another encoding, {cure}.")


def format_counts(counts: dict) -> str:
    return "; ".join(f"{count:,} {PRINTED_COUNTS.get(name, name)}" for name, count in counts.items())


def format_damage(damage: dict) -> str:
    return f"{damage['source']} was not read to the end: {damage['why']}."


def check_has_text(manifest: dict) -> None:
    """Raises DataError, with all that was dropped, damaged or skipped, if nothing is left."""
    if not any(shard["tokens"] for part in manifest["shards"].values() for shard in part):
        reasons = [f"{format_counts(manifest['counts'])}."] if manifest["counts"] else []
        reasons += [*map(format_damage, manifest["damaged"][:5]), *manifest["notes"][:5]]
        if any(name.endswith("without a text") for name in manifest["counts"]):
            reasons.append("Give the name of the text's field or column with --field of data.prepare.")
            reasons.append(
                "If it is in an object within, extract it first, for example with jq -c '{text: .data.text}'."
            )
        raise DataError(" ".join(["The corpus has no usable text.", *reasons]))
