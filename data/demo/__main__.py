"""Writes the corpus of the demo's teacher and trains its tokenizer:  python -m data.demo FOLDER"""

import sys
from pathlib import Path

import sentencepiece

from ..outputs import new_file, write_file
from ..tokenizer import FILE_NAME
from . import teacher_texts

PIECES = 1000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "corpus.txt", "".join(text + "\n" for text in teacher_texts()).encode())
    with new_file(folder / FILE_NAME) as model:  # unigram as CamemBERT's, despite the file name
        settings = dict(vocab_size=PIECES, model_type="unigram", num_threads=1)
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=teacher_texts(), model_writer=model, **settings)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] in (["-h"], ["--help"]) else 2)
    main(Path(sys.argv[1]))
