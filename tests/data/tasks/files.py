"""Small task files and their examples, shared by the tests of the four tasks."""

import json
from pathlib import Path

from data.tasks import Answer, PairExample, QuestionExample, TextExample, WordsExample, read_task
from tests.helpers import SHARED

REAL = SHARED / "data"
ODD = "a\u2028b\x85c\u00a0d\x0be"  # str.splitlines and str.split would split it
THREE = [PairExample("P", f"h{i}", label) for i, label in enumerate(("entailment", "neutral", "contradiction"))]
SENTENCES = [
    WordsExample(("Anne", "Roc", "vit", "à", "Aix", "#", "|"), ("B-PER", "I-PER", "O", "O", "B-LOC", "O", "O")),
    WordsExample(("#", "10\u00a0000", "[", "{", ODD), ("O", "O", "O", "B-MISC", "B-ORG")),
    WordsExample(("1",), ("O",)),
]
CONTEXT = "L'été\u2028dure 😀 trois mois."
QUESTION = {"id": "q1", "question": "Combien ?", "answers": [{"text": "trois", "answer_start": 13}]}
EXPECTED = QuestionExample("q1", CONTEXT, "Combien ?", (Answer("trois", 13),))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(*values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def pairs(*rows: tuple[str, str]) -> list[TextExample]:
    return [TextExample(*row) for row in rows]


def squad(*qas: dict) -> dict:
    return {"version": "1", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": list(qas)}]}]}


def real(task: str, name: str) -> tuple[list, list[str]]:
    reports = []
    return read_task(task, [REAL / name], reports.append), reports
