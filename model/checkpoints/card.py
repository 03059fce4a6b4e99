"""The model card of an exported model: how it was made, from the provenance stored in its file."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data.cli import dashed

from .native import is_native, is_safetensors, read_metadata

PIPELINES = {  # transformers' class -> the hub's name of its task
    "CamembertForMaskedLM": "fill-mask",
    "CamembertForSequenceClassification": "text-classification",
    "CamembertForTokenClassification": "token-classification",
    "CamembertForQuestionAnswering": "question-answering",
    "CamembertModel": "feature-extraction",
}
TASKS = {
    "sentiment": "sentiment classification",
    "ner": "named-entity recognition",
    "nli": "natural language inference",
    "qa": "question answering",
}
LOSSES = {"loss": "total", "soft_label_loss": "soft labels", "cosine_loss": "cosine", "mlm_loss": "masked LM"}


OUTPUTS = {  # what a reader must know of the outputs, by the head's setting in config.json
    "multi_label_classification": "A text can have several labels: the score of each is a sigmoid of its own.",
    "regression": "The output is a value, not a probability: it is used as it is.",
}


def model_card(
    architecture: str, num_layers: int, provenance: Mapping, metrics: Mapping, head: str | float | None = None
) -> str:
    """The README.md of an exported model, in the hub's format. The licence is left for the user to fill in.

    architecture: transformers' class. provenance: of read_provenance, or {"converted from": …}. metrics: of
    last_metrics. head: the problem_type of a sequence classifier, the no_answer_threshold of a question answerer.
    Provenance and metrics may come from a damaged file: what has an unexpected type there is left out.
    """
    lines = [
        "---",
        "language: fr",
        "library_name: transformers",
        f"pipeline_tag: {PIPELINES[architecture]}",
        "license:  # fill in: it depends on the licences of the teacher and of the data",
        "---",
        "",
        f"# A French model of {num_layers} layers (`{architecture}`)",
        "",
    ]
    if head in OUTPUTS:
        lines += [OUTPUTS[head], ""]
    elif head is not None and architecture == "CamembertForQuestionAnswering":
        lines += [
            "Where the start and end logits of `<s>` exceed those of the best answer by more than "
            f"{head:.4f} (transformers' `null_score_diff_threshold`), the context does not answer the question.",
            "",
        ]
    if "task" in provenance:
        lines += fine_tuning(provenance)
    elif as_dict(provenance.get("options")):
        lines += distillation(provenance, metrics)
    elif "converted from" in provenance:
        lines += [f"Converted from {code(provenance['converted from'])}.", ""]
    if versions := as_dict(provenance.get("versions")):
        lines += ["Made with " + ", ".join(f"{name} {text(version)}" for name, version in versions.items()) + ".", ""]
    return "\n".join(lines)


def fine_tuning(provenance: Mapping) -> list[str]:
    """The lines on a run of `python -m eval finetune` or `table2`."""
    options, run, task = as_dict(provenance.get("options")), as_dict(provenance.get("run")), text(provenance["task"])
    made = f"Fine-tuned from {code(options.get('model'))} for {TASKS.get(task, task)}"
    if options.get("teacher") is not None:
        weight, temperature = text(options.get("soft_weight")), text(options.get("temperature"))
        made += f", distilled from {code(options['teacher'])}, a teacher of the same task"
        made += f" (weight of its soft labels {weight}, temperature {temperature})"
    train, dev, test = (options.get(part) for part in ("train", "dev", "test"))
    if train == dev:  # table2 splits the examples itself
        data = f"Trained and evaluated on parts of {code(list(as_dict(provenance.get('files'))))}."
    else:
        data = f"Trained on {code(train)}; best epoch chosen on {code(dev)}."
        data += f" Tested on {code(test)}." if test else ""
    figures = {part: as_dict(run[part]) for part in ("dev", "test") if part in run}
    rows = [
        (name, *(number(as_dict(part.get(name)).get("value")) for part in figures.values()))
        for name in figures.get("dev", {})
    ]
    return [
        f"{made}:",
        "",
        f"```\n{text(provenance.get('command'))}\n```\n",
        data,
        "",
        f"Figures of the best epoch on dev (epoch {text(run.get('epoch'))}, seed {text(run.get('seed'))}):",
        "",
        *markdown_table(("figure", *figures), rows),
    ]


def distillation(provenance: Mapping, metrics: Mapping) -> list[str]:
    """The lines on a run of train.py, with or without a teacher."""
    options = as_dict(provenance["options"])
    made = f"Distilled from {code(options.get('teacher'))} by DistilCamemBERT's method"
    if options.get("teacher") == "none":
        made = "Trained from random weights, without a teacher"
    lines = [f"{made}, on {code(options.get('corpus'))}:", "", f"```\n{command(options)}\n```\n"]
    if metrics:
        lines += [f"Training losses at step {text(metrics.get('step'))}:", ""]
        lines += markdown_table(("loss", "mean"), ((word, number(metrics.get(key))) for key, word in LOSSES.items()))
    if accuracy := as_dict(provenance.get("held_out_accuracy")):
        lines += ["Masked-token accuracy on held-out text:", ""]
        lines += markdown_table(("model", "accuracy"), ((name, number(x, ".1%")) for name, x in accuracy.items()))
    return lines


def command(options: Mapping) -> str:
    """The command line of train.py for these options."""
    words = ["python", "train.py"]
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(dashed(name if value else f"no_{name}"))
        elif value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            words += [dashed(name), *map(text, values)]
    return shlex.join(words)


# ---- Markdown --------------------------------------------------------------------------------------------------


def text(value: object) -> str:
    """A stored string or number on one line; "unknown" for anything else in a damaged file."""
    return " ".join(str(value).splitlines()) if isinstance(value, str | int | float) else "unknown"


def number(value: object, form: str = ".4f") -> str:
    """A stored figure; empty for anything else in a damaged file."""
    return format(value, form) if type(value) is float and math.isfinite(value) else ""


def code(value: object) -> str:
    """A stored name, or a list of names."""
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"`{text(each)}`" for each in values)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows without a single figure after their name are left out."""
    lines = [head, ["---"] * len(head), *(row for row in rows if any(row[1:]))]
    return [*(f"| {' | '.join(map(text, cells))} |" for cells in lines), ""]


# ---- what is stored --------------------------------------------------------------------------------------------


def as_dict(value: object) -> dict:
    """A JSON object; {} for anything else in a damaged file."""
    return value if isinstance(value, dict) else {}


def read_provenance(path: Path) -> dict:
    """The provenance in a file of this project; {} for any other file, and if it is damaged.  Raises ModelError."""
    if not is_safetensors(path) or not is_native(metadata := read_metadata(path)):
        return {}
    try:
        return as_dict(json.loads(metadata.get("provenance", "null")))
    except (ValueError, RecursionError):
        return {}


def last_metrics(path: Path) -> dict:
    """The last line of a run's metrics.jsonl, {} if there is none or it is incomplete."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return as_dict(json.loads(lines[-1])) if lines else {}
    except (OSError, ValueError, RecursionError):
        return {}
