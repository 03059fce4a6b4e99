"""Strips what wrappers add to keys: DDP, FSDP, torch.compile, Lightning, sentence-transformers, the user's modules."""

from collections.abc import Callable, Iterable
from itertools import dropwhile
from pathlib import Path

from ..config import ModelError
from .names import EMBEDDING_KEYS

# what PyTorch, DeepSpeed, Lightning and Opacus insert before a key or inside it; CamemBERT has no such names
INSERTED = {
    *("module", "_module", "_orig_mod", "_orig_module", "_forward_module"),
    *("_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
}
BASES = ("roberta", "camembert", "xlm_roberta", "bert")  # names of the encoder; the keys of a head stand beside it
ANCHORS = [EMBEDDING_KEYS[f"encoder.embeddings.{name}.weight"] for name in ("word", "position")]
MAX_LISTED = 3  # keys or prefixes in a sentence


def unwrapped_names(keys: Iterable[str], path: Path, report: Callable[[str], None]) -> dict[str, str]:
    """{key of the model in a file: its name without what wrappers added and without the encoder's own name}

    The model is where the embeddings are. What stands before them is the prefix of all its keys; a key without it
    belongs to something else, such as a metric, and is left out.
    report: called with a sentence for what is stripped and for what is left out.
    Raises ModelError for several models in one file, such as a teacher and its student.
    """
    names = {key: ".".join(part for part in key.split(".") if part not in INSERTED) for key in keys}
    prefixes = {prefix: key for key, name in names.items() if (prefix := prefix_of(name)) is not None}
    if len(prefixes) > 1:
        listed = " and ".join(repr(prefix)[:100] for prefix in sorted(prefixes)[:MAX_LISTED])
        raise ModelError(f"{path} holds {len(prefixes)} models, with the prefixes {listed}. Save one of them alone.")
    prefix, anchor = prefixes.popitem() if prefixes else ("", "")
    stripped = whole_prefix(anchor, prefix)
    if stripped:
        report(f"{path}: the prefix {stripped:.200} is stripped from its keys.")
    inside = {key: without_base(name[len(prefix) :]) for key, name in names.items() if name.startswith(prefix)}
    inserted = {part for key in inside for part in key.removeprefix(stripped).split(".") if part in INSERTED}
    if inserted:
        report(f"{path}: {', '.join(sorted(inserted))} inside its keys is left out; a wrapper inserted it.")
    outside = [key[:100] for key in names if key not in inside]
    if outside:
        more = f" and {len(outside) - MAX_LISTED} more" if outside[MAX_LISTED:] else ""
        listed = ", ".join(outside[:MAX_LISTED]) + more
        report(f"{path}: left out, because the CamemBERT is under {stripped:.200}: {listed}.")
    return inside


def prefix_of(name: str) -> str | None:
    """The part of an embedding's key before the model's own name of it; None for any other key."""
    for anchor in ANCHORS:
        if f".{name}".endswith(f".{anchor}"):
            parts = name.removesuffix(anchor).split(".")[:-1]
            while parts and parts[-1] in BASES:
                parts.pop()
            return "".join(f"{part}." for part in parts)
    return None


def without_base(name: str) -> str:
    parts = name.split(".")
    return ".".join([*dropwhile(BASES.__contains__, parts[:-1]), parts[-1]])


def whole_prefix(key: str, prefix: str) -> str:
    """The prefix as it stands in a key: with what wrappers inserted before, inside and behind it."""
    parts, left, end = key.split("."), prefix.count("."), 0
    while left or parts[end] in INSERTED:
        left -= parts[end] not in INSERTED
        end += 1
    return "".join(f"{part}." for part in parts[:end])
