"""The embedded default: a small made-up world of French sentences, so that everything runs with nothing at hand.

sentencepiece.bpe.model and teacher.safetensors were made from it, by this project:

    python -m data.demo runs/demo-corpus
    cp runs/demo-corpus/sentencepiece.bpe.model data/demo/
    python train.py --teacher none --tokenizer data/demo --corpus runs/demo-corpus/corpus.txt \\
                    --num-layers 6 --hidden-size 128 --num-heads 4 --intermediate-size 512 \\
                    --dropout 0 --block-size 64 --batch-size 16 --steps 12000 --warmup 0.02 --lr 6e-4 \\
                    --out runs/demo-teacher
    python train.py --teacher runs/demo-teacher/student.safetensors --corpus runs/demo-corpus/corpus.txt \\
                    --layers 0,1,2,3,4,5 --weights 0 0 1 --dropout 0 --lr 3e-4 --steps 1200 \\
                    --out runs/demo-teacher-128
    cp runs/demo-teacher-128/student.safetensors data/demo/teacher.safetensors

The second run goes on from the first with blocks of 128, whose later positions the first has not seen. Texts of
more than 128 tokens are beyond this teacher. Four rare letters (ù, û, ï, w: SentencePiece covers 99.95 % of the
characters by default) are <unk> to this tokenizer, about one token in a thousand, "Où" among them.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from .world import corpus

FOLDER = Path(__file__).parent
TEACHER = FOLDER / "teacher.safetensors"
STUDENT = {"num_layers": 3, "hidden_size": 128, "num_heads": 4, "intermediate_size": 512}


def texts() -> Iterator[str]:
    """What the demo's student is trained and measured on, the same every time."""
    return corpus(8_000, seed=0)


def write_texts(folder: str | Path) -> str:
    """The texts as a file in that folder -> its path. A file that is the same already is left alone."""
    content = "".join(f"{text}\n" for text in texts()).encode()
    path = Path(folder) / f"demo-{zlib.crc32(content):08x}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_bytes(content)
        partial.replace(path)
    return str(path)


def teacher_texts() -> Iterator[str]:
    """What the demo's teacher and tokenizer were made from: other sentences about the same world."""
    return corpus(40_000, seed=1)
