"""Shows what a prepared corpus contains.

    python -m data.inspect FOLDER

prints the number of tokens and documents, the document lengths, some documents decoded, and some blocks as training
masks them. It checks that the corpus was prepared with this tokenizer; --verify also checks the hash of every file.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy

from .blocks import Blocks, make_batch
from .cli import DataError, check_bounds, check_paths, option, parse_options, run_command
from .corpus.shards import TRAIN, open_manifest
from .corpus.shuffle import key_of, permute
from .corpus.summary import print_summary
from .download.models import fetch_models
from .masking import RATE, STRATEGIES, TRAINING_RATE, Masking
from .tokenizer import Tokenizer

QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)


@dataclass(frozen=True)
class Options:
    folder: str = option(None, "output folder of data.prepare", "corpus", positional=True, metavar="FOLDER")
    tokenizer: str | None = option(None, "tokenizer to check (default: the one in FOLDER)", metavar="PATH")
    verify: bool = option(False, "compare the hash of every file with the manifest")
    examples: int = option(3, "number of documents, and of masked blocks, to print", "examples", least=0, most=1000)
    block_size: int = option(64, "tokens per masked block", least=3, most=10**5)
    masking: str = option(STRATEGIES[0], "masking strategy, as in train.py", choices=STRATEGIES)
    masking_rate: float = option(TRAINING_RATE, "fraction of the tokens to mask, as in train.py", **RATE)
    seed: int = option(0, "of the examples and their masks", least=0, most=2**62)

    def __post_init__(self):
        check_bounds(self)


def inspect(options: Options) -> None:
    """Prints everything.  Raises DataError for a folder without a corpus, another tokenizer, or a damaged file."""
    folder = Path(options.folder)
    manifest = open_manifest(folder)
    print_summary(manifest)
    tokenizer = Tokenizer(options.tokenizer or folder)
    if tokenizer.sha256() != manifest["tokenizer"]["sha256"]:
        raise DataError(f"{folder} was prepared with another tokenizer than {tokenizer.path}.")
    print(f"tokenizer {tokenizer.path}, the one that the corpus was prepared with")
    if options.verify:
        verify(folder, manifest)
    blocks = Blocks(folder, TRAIN, options.block_size, tokenizer.bos_id)
    print_lengths(blocks)
    print_documents(blocks, tokenizer, options.examples, options.seed)
    masking = Masking(tokenizer, options.masking, numpy.array(manifest["token_counts"]), options.masking_rate)
    print_masked_blocks(blocks, masking, options.examples, options.seed)


def verify(folder: Path, manifest: dict) -> None:
    """Raises DataError for a file whose hash differs from the manifest's."""
    for shard in [shard for shards in manifest["shards"].values() for shard in shards]:
        for suffix, expected in ((".bin", shard["sha256"]), (".ends", shard["ends_sha256"])):
            path = folder / (shard["name"] + suffix)
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256")
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}.") from None
            if digest.hexdigest() != expected:
                raise DataError(f"{path} is damaged: its hash differs from the manifest. Prepare the corpus again.")
    print("verified  every file has the hash given in the manifest")


def print_lengths(blocks: Blocks) -> None:
    """Quantiles of the lengths of the training documents, in tokens without </s>."""
    lengths = [numpy.diff(numpy.asarray(ends).astype(numpy.int64), prepend=0) - 1 for ends in blocks.ends]
    lengths = numpy.concatenate(lengths) if lengths else numpy.empty(0)
    if len(lengths):
        values = ", ".join(f"{value:,.0f}" for value in numpy.quantile(lengths, QUANTILES))
        print(f"lengths   of {'all' if blocks.by_block else 'training'} documents, in tokens: {values}")
        print(f"          (minimum, {', '.join(f'{quantile:.0%}' for quantile in QUANTILES[1:-1])}, maximum)")


def print_documents(blocks: Blocks, tokenizer: Tokenizer, count: int, seed: int) -> None:
    """Random training documents, decoded; says so if the text, tokenized again, gives other ids."""
    total = sum(map(len, blocks.ends))
    numbers = permute(numpy.arange(min(count, total)), total, key_of(seed)) if total else []
    for number in sorted(int(number) for number in numbers):
        shard, first = 0, 0  # first: number of the shard's first document
        while number - first >= len(blocks.ends[shard]):
            shard, first = shard + 1, first + len(blocks.ends[shard])
        ends, index = blocks.ends[shard], number - first
        ids = blocks.tokens[shard][int(ends[index - 1]) if index else 0 : int(ends[index]) - 1].tolist()
        text = tokenizer.decode(ids)
        same = tokenizer.encode(text)[1:-1] == ids or tokenizer.unk_id in ids
        print(f"\ndocument {number:,}, {len(ids)} tokens{'' if same else ' (other ids when tokenized again)'}")
        print(f"  {text[:500]}{'…' if len(text) > 500 else ''}")


def print_masked_blocks(blocks: Blocks, masking: Masking, count: int, seed: int) -> None:
    """Random blocks as training masks them, with the original of each chosen token in brackets."""
    numbers = permute(numpy.arange(min(count, len(blocks))), len(blocks), key_of(seed, 0))
    batch = make_batch(blocks.read(numbers), masking, key_of(seed, 0, numbers))
    for number, ids, labels in zip(numbers, batch.input_ids.tolist(), batch.labels.tolist()):
        pieces = masking.tokenizer.pieces(ids)
        for index, label in enumerate(labels):
            if label >= 0:
                pieces[index] = f"{pieces[index]}[{masking.tokenizer.pieces([label])[0]}]"
        print(f"\nblock {number:,} masked\n  {' '.join(pieces)}")


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(Options, arguments, "python -m data.inspect FOLDER [OPTIONS]", __doc__)
    check_paths(options, "folder")
    inspect(fetch_models(options, "tokenizer"))


if __name__ == "__main__":
    run_command("data.inspect", main)
