"""The model card: what a folder for transformers says about the model in it."""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from data.cli import dashed

TASKS = {  # of transformers' classes, in the hub's words
    "CamembertForMaskedLM": "fill-mask",
    "CamembertForSequenceClassification": "text-classification",
    "CamembertForTokenClassification": "token-classification",
    "CamembertForQuestionAnswering": "question-answering",
    "CamembertModel": "feature-extraction",
}
LOSSES = {"loss": "total", "soft_label_loss": "soft labels", "cosine_loss": "cosine", "mlm_loss": "masked LM"}


def model_card(architecture: str, num_layers: int, provenance: Mapping, metrics: Mapping) -> str:
    """README.md of a folder for transformers, in the hub's format.

    provenance: what our file says of how the model was made, {} where it says nothing; metrics: the last line of
    its run's metrics.jsonl, {} where there is none. The licence is the user's to fill in.
    """
    lines = [
        "---",
        "language: fr",
        "library_name: transformers",
        f"pipeline_tag: {TASKS[architecture]}",
        "license:  # fill in: it depends on the teacher's and on the data's",
        "---",
        "",
        f"# A French model of {num_layers} layers (`{architecture}`)",
        "",
    ]
    options = table(provenance.get("options"))
    if options:
        made = f"Distilled from `{options.get('teacher')}`"
        if options.get("teacher") == "none":
            made = "Trained from random numbers, without a teacher"
        corpus = options.get("corpus")
        corpus = " ".join(map(str, corpus)) if isinstance(corpus, list) else str(corpus)
        lines += [f"{made}, on `{corpus}`, by DistilCamemBERT's recipe, with", "", "```"]
        lines += [command(options), "```", ""]
    elif "converted from" in provenance:
        lines += [f"Converted from `{provenance['converted from']}`.", ""]
    if metrics:
        lines += [
            f"Losses at the end (step {metrics.get('step')}), on training text:",
            "",
            "| term | mean |",
            "|---|---|",
        ]
        lines += [f"| {word} | {metrics[key]:.4f} |" for key, word in LOSSES.items() if is_number(metrics.get(key))]
        lines.append("")
    accuracy = table(provenance.get("held_out_accuracy"))
    if accuracy:
        lines += ["Masked tokens of held-out text guessed right:", "", "| model | share |", "|---|---|"]
        lines += [f"| {name} | {share:.1%} |" for name, share in accuracy.items() if is_number(share)]
        lines.append("")
    versions = table(provenance.get("versions"))
    if versions:
        lines += ["Made with " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", ""]
    return "\n".join(lines)


def command(options: Mapping) -> str:
    """The command line that these options stand for."""
    words = ["python", "train.py"]
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(dashed(name if value else f"no_{name}"))
        elif value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            words += [dashed(name), *map(str, values)]
    return shlex.join(words)


def is_number(value) -> bool:
    return type(value) is float and math.isfinite(value)


def table(value: object) -> dict:
    """A JSON object; of anything else in a damaged file, nothing."""
    return value if isinstance(value, dict) else {}


def last_metrics(path: Path) -> dict:
    """The last line of a metrics.jsonl, {} where there is none or it is torn."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return table(json.loads(lines[-1])) if lines else {}
    except (OSError, ValueError, RecursionError):
        return {}
