"""Writes the corpus of the demo's teacher and trains its tokenizer:  python -m data.demo FOLDER"""

from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from ..cli import option, parse_options, run_command
from ..outputs import new_file, write_file
from ..tokenizer import FILE_NAME
from . import teacher_texts

PIECES = 1000


@dataclass(frozen=True)
class Options:
    folder: str = option(None, "folder for corpus.txt and the tokenizer", "output", positional=True, metavar="FOLDER")


def main() -> None:
    folder = Path(parse_options(Options, None, "python -m data.demo FOLDER", __doc__).folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "corpus.txt", "".join(text + "\n" for text in teacher_texts()).encode())
    with new_file(folder / FILE_NAME) as model:  # unigram as CamemBERT's, despite the file name
        settings = dict(vocab_size=PIECES, model_type="unigram", num_threads=1)
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=teacher_texts(), model_writer=model, **settings)


if __name__ == "__main__":
    run_command("data.demo", main)
