"""The embedded demo: a small made-up world of French sentences, so that every command runs without a download.

Its sentencepiece.bpe.model and teacher.safetensors were made by this project:

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

The first run uses blocks of 64 tokens; the second continues with blocks of 128, to train the later positions. The
teacher has seen no texts of more than 128 tokens. Four rare letters (ù, û, ï, w) are <unk>, about one token in 1,000,
because SentencePiece covers 99.95 % of the characters by default; "Où" has one of them.
"""

import zlib
from collections.abc import Iterator
from pathlib import Path

from ..outputs import write_file
from .world import corpus

FOLDER = Path(__file__).parent
TEACHER = FOLDER / "teacher.safetensors"
STUDENT = {"num_layers": 3, "hidden_size": 128, "num_heads": 4, "intermediate_size": 512}


def texts() -> Iterator[str]:
    """The corpus of the demo's student; the same in every call."""
    return corpus(8_000, seed=0)


def write_texts(folder: str | Path) -> str:
    """Writes the texts to a file in the folder, unless it exists -> its path."""
    content = "".join(f"{text}\n" for text in texts()).encode()
    path = Path(folder) / f"demo-{zlib.crc32(content):08x}.txt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    return str(path)


def teacher_texts() -> Iterator[str]:
    """The corpus of the demo's teacher and tokenizer: other texts about the same world."""
    return corpus(40_000, seed=1)
