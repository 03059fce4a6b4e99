"""What is in a prepared corpus.

    python -m data.inspect FOLDER

prints how much there is, how long the documents are, a few of them decoded, a few blocks masked, and whether the
tokenizer is the one that the corpus was prepared with. --verify reads all of it against the hashes of its manifest.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy

from .blocks import Blocks, make_batch
from .cli import DataError, check_bounds, option, parse_options, run_command
from .corpus.shards import TRAIN, open_manifest
from .corpus.shuffle import key_of, permute
from .masking import STRATEGIES, Masking
from .prepare import describe
from .tokenizer import Tokenizer

SHARES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)


@dataclass(frozen=True)
class Options:
    folder: str = option("", "folder that data.prepare made", "what is shown", positional=True, metavar="FOLDER")
    tokenizer: str | None = option(None, "one to compare with (default: the one in the folder)", metavar="FILE")
    examples: int = option(3, "documents, and masked blocks, that are shown", least=0, most=1000)
    block_size: int = option(64, "tokens of a masked block", least=3, most=10**5)
    masking: str = option(STRATEGIES[0], "how they are masked", choices=STRATEGIES)
    seed: int = option(0, "which are shown, and their masks", least=0, most=2**63 - 1)
    verify: bool = option(False, "read every file and compare its hash")

    def __post_init__(self):
        check_bounds(self)


def inspect(options: Options) -> None:
    """Prints it all.  Raises DataError for what is no corpus, another tokenizer, or a damaged file."""
    folder = Path(options.folder)
    manifest = open_manifest(folder)
    describe(manifest)
    tokenizer = Tokenizer(options.tokenizer or folder)
    if tokenizer.sha256() != manifest["tokenizer"]["sha256"]:
        raise DataError(f"{tokenizer.path} is not the tokenizer that {folder} was prepared with.")
    print(f"tokenizer {tokenizer.path}, the one that the corpus was prepared with")
    if options.verify:
        verify(folder, manifest)
    blocks = Blocks(folder, TRAIN, options.block_size, tokenizer.bos_id)
    print_lengths(blocks)
    print_examples(blocks, tokenizer, options)
    print_masked(blocks, Masking(tokenizer, options.masking, numpy.array(manifest["token_counts"])), options)


def verify(folder: Path, manifest: dict) -> None:
    """Raises DataError for a file that is not what its hash says."""
    for shard in [shard for shards in manifest["shards"].values() for shard in shards]:
        for suffix, known in ((".bin", shard["sha256"]), (".ends", shard["ends_sha256"])):
            path = folder / (shard["name"] + suffix)
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256")
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}.") from None
            if digest.hexdigest() != known:
                raise DataError(f"{path} is damaged: its hash is not the manifest's. Prepare the corpus anew.")
    print("verified  every file has the hash that the manifest says")


def print_lengths(blocks: Blocks) -> None:
    lengths = [numpy.diff(numpy.asarray(ends).astype(numpy.int64), prepend=0) - 1 for ends in blocks.ends]
    lengths = numpy.concatenate(lengths) if lengths else numpy.empty(0)
    if len(lengths):
        shown = ", ".join(f"{value:,.0f}" for value in numpy.quantile(lengths, SHARES))
        print(f"lengths   of training documents, in tokens: {shown}")
        print(f"          (shortest, {', '.join(f'{share:.0%}' for share in SHARES[1:-1])}, longest)")


def print_examples(blocks: Blocks, tokenizer: Tokenizer, options: Options) -> None:
    """Documents from all over the corpus, and whether they are tokenized as they were."""
    total = sum(map(len, blocks.ends))
    places = permute(numpy.arange(min(options.examples, total)), total, key_of(options.seed)) if total else []
    for place in sorted(int(place) for place in places):
        shard, first = 0, 0
        while place - first >= len(blocks.ends[shard]):
            shard, first = shard + 1, first + len(blocks.ends[shard])
        ends, inside = blocks.ends[shard], place - first
        ids = blocks.tokens[shard][int(ends[inside - 1]) if inside else 0 : int(ends[inside]) - 1].tolist()
        text = tokenizer.decode(ids)
        again = tokenizer.encode(text)[1:-1] == ids or tokenizer.unk_id in ids
        print(f"\ndocument {place:,}, {len(ids)} tokens{'' if again else ' (decoded, the text gives others)'}")
        print(f"  {text[:500]}{'…' if len(text) > 500 else ''}")


def print_masked(blocks: Blocks, masking: Masking, options: Options) -> None:
    """Blocks as training sees them; of each chosen token, the original in brackets."""
    if not len(blocks):
        return
    numbers = permute(numpy.arange(min(options.examples, len(blocks))), len(blocks), key_of(options.seed, 0))
    batch = make_batch(blocks.read(numbers), masking, key_of(options.seed, 0, numbers))
    for number, ids, labels in zip(numbers, batch.input_ids.tolist(), batch.labels.tolist()):
        pieces = masking.tokenizer.pieces(ids)
        for place, label in enumerate(labels):
            if label >= 0:
                pieces[place] = f"{pieces[place]}[{masking.tokenizer.pieces([label])[0]}]"
        print(f"\nblock {number:,} masked\n  {' '.join(pieces)}")


def main(arguments: list[str] | None = None) -> None:
    inspect(parse_options(Options, arguments, "python -m data.inspect FOLDER [OPTIONS]", __doc__))


if __name__ == "__main__":
    run_command("data.inspect", main)
