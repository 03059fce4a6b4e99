"""The four tasks on the demo world, as files in the forms that others' data have."""

import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from data.demo import world
from data.tasks import Example

SIZES = {"train": 1.0, "dev": 0.1, "test": 0.25}  # shares of what is asked for
SEEDS = {"train": 11, "dev": 12, "test": 13}


def write_tasks(folder: str | Path, counts: dict[str, int]) -> None:
    """FOLDER/TASK/{train,dev,test}.*, with so many examples of each task to train on.

    Reviews as JSON lines like Allociné's, inferences tab-separated like XNLI's, tags in columns like WikiNEuRal's,
    questions like SQuAD's. Inferences are the easy ones, which a small model learns within a minute. What is there
    already is written anew, and is the same.
    """
    makers = {"sentiment": world.sentiment, "ner": world.ner, "nli": partial(world.nli, easy=True), "qa": world.qa}
    writers = {"sentiment": reviews, "ner": columns, "nli": table, "qa": squad}
    suffixes = {"sentiment": "jsonl", "ner": "conllu", "nli": "tsv", "qa": "json"}
    for task, count in counts.items():
        place = Path(folder) / task
        place.mkdir(parents=True, exist_ok=True)
        for part, share in SIZES.items():
            examples = makers[task](round(count * share), SEEDS[part])
            (place / f"{part}.{suffixes[task]}").write_text(writers[task](examples), encoding="utf-8")


def reviews(examples: Iterable[Example]) -> str:
    lines = [json.dumps({"review": e.text, "polarity": int(e.label)}, ensure_ascii=False) for e in examples]
    return "\n".join(lines) + "\n"


def table(examples: Iterable[Example]) -> str:
    return "\n".join(["premise\thypothesis\tlabel", *("\t".join(example) for example in examples)]) + "\n"


def columns(examples: Iterable[Example]) -> str:
    sentences = ["".join(f"{i}\t{word}\t{tag}\n" for i, (word, tag) in enumerate(zip(*e))) for e in examples]
    return "\n".join(sentences)


def squad(examples: Iterable[Example]) -> str:
    paragraphs = [
        {
            "context": e.context,
            "qas": [{"id": e.id, "question": e.question,
                     "answers": [{"text": a.text, "answer_start": a.start} for a in e.answers]}],
        }
        for e in examples
    ]  # fmt: skip
    return json.dumps({"version": "demo", "data": [{"title": "demo", "paragraphs": paragraphs}]}, ensure_ascii=False)
