"""The four tasks on the demo world, as files in the formats of public data sets."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ..outputs import make_folder, write_file
from ..tasks import Example
from . import world

SIZES = {"train": 1.0, "dev": 0.1, "test": 0.25}  # relative to the number of training examples
SEEDS = {"train": 11, "dev": 12, "test": 13}


def write_tasks(folder: str | Path, counts: dict[str, int]) -> None:
    """Writes FOLDER/TASK/{train,dev,test}.*; counts: the number of training examples of each task.

    Sentiment as JSON lines (Allociné), NLI tab-separated (XNLI), NER in columns (WikiNEuRal), QA as JSON (SQuAD). All
    but NER have the easy examples, which a small model learns within a minute. Existing files are replaced by
    identical ones.
    """
    makers = {task: partial(getattr(world, task), easy=True) for task in ("sentiment", "nli", "qa")}
    makers["ner"] = world.ner
    writers = {"sentiment": json_lines, "ner": columns, "nli": tab_separated, "qa": squad}
    suffixes = {"sentiment": "jsonl", "ner": "conllu", "nli": "tsv", "qa": "json"}
    for task, count in counts.items():
        task_folder = Path(folder) / task
        make_folder(task_folder)
        for part, share in SIZES.items():
            examples = makers[task](round(count * share), SEEDS[part])
            write_file(task_folder / f"{part}.{suffixes[task]}", writers[task](examples).encode())


def json_lines(examples: Iterable[Example]) -> str:
    lines = [json.dumps({"review": e.text, "polarity": int(e.label)}, ensure_ascii=False) for e in examples]
    return "\n".join(lines) + "\n"


def tab_separated(examples: Iterable[Example]) -> str:
    return "\n".join(["premise\thypothesis\tlabel", *("\t".join(example) for example in examples)]) + "\n"


def columns(examples: Iterable[Example]) -> str:
    sentences = ["".join(f"{i}\t{word}\t{tag}\n" for i, (word, tag) in enumerate(zip(*e))) for e in examples]
    return "\n".join(sentences)


def squad(examples: Iterable[Example]) -> str:
    paragraphs = []
    for e in examples:
        answers = [{"text": a.text, "answer_start": a.start} for a in e.answers]
        paragraphs.append({"context": e.context, "qas": [{"id": e.id, "question": e.question, "answers": answers}]})
    return json.dumps({"version": "demo", "data": [{"title": "demo", "paragraphs": paragraphs}]}, ensure_ascii=False)
