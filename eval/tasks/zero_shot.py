"""Classification by an inference model that has never seen the labels: equation (15)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor

from data import OptionError
from data.cli import check, check_bounds, option, parse_options
from data.tasks import PairExample, read_task
from model.checkpoints.native import fingerprint

from ..results import HALF, check_writable, command_line, provenance, show, warn, write_json
from .batching import infer
from .evaluate import InferenceOptions, open_model
from .predict import open_lines, windows
from .sequences import classification_report

ENTAILMENT = ("entailment", "implication")
WINDOW = 512  # texts, each with all candidates, that go through the model at once


@dataclass(frozen=True)
class Options(InferenceOptions):
    """What is asked of which texts."""

    file: str | None = option(None, "texts, a line each, or JSON lines with text (default: standard input)",
                              "what is asked", positional=True, nargs="?", metavar="FILE")  # fmt: skip
    model: str | None = option(None, "a model fine-tuned on inference (nli)", metavar="FILE")
    labels: tuple[str, ...] = option((), "the candidates, words that fit into the template", nargs="+")
    template: str = option("Ce texte parle de {}.", "the hypothesis; {} is where a label goes")
    printed: bool = option(
        False,
        "equation (15) as printed: softmax over the probabilities of entailment, not its logits as the released models",
    )
    test: tuple[str, ...] = option((), "labelled texts to be measured on, as for sentiment", nargs="+", metavar="FILE")
    names: tuple[str, ...] = option((), "what the labels of --test are called, in the order of --labels", nargs="+")
    seed: int = option(0, "of the resampling for the intervals", least=0, most=2**63 - 1)
    out: str | None = option(None, "JSON file for --test (default: runs/results/zero-shot-time.json)", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model names a model fine-tuned on inference.")
        check(len(set(self.labels)) == len(self.labels) > 1, "--labels takes two different candidates or more.")
        check(self.template.count("{}") == 1, f"--template {self.template!r} must have {{}} in it, once.")
        check(not HALF.search("".join((*self.labels, self.template))), "--labels and --template must be UTF-8.")
        check(len(self.names) in (0, len(self.labels)), "--names takes as many names as --labels.")
        check(len(set(self.names)) == len(self.names), "--names has the same name twice.")
        check(bool(self.test) or not (self.names or self.out), "--names and --out go with --test.")
        check(not (self.test and self.file), "--test has the texts already; leave FILE out.")


def candidate_scores(logits: Tensor, entailment: int, printed: bool = False) -> Tensor:
    """Equation (15), section 4.  P(candidate k | text) = softmax over k of the entailment of hypothesis k.

    logits: (K, 3), of the inference model for the text with each of K hypotheses -> (K,)
    As printed, the softmax is taken over the probabilities P(entailment) of equation (14), which lie between 0 and 1
    and so give nearly equal scores. The released models take it over the entailment logits: the default.
    """
    values = logits.softmax(dim=-1) if printed else logits
    return values[:, entailment].softmax(dim=0)


class ZeroShot:
    """An inference model with the candidates asked for."""

    def __init__(self, options: Options):
        self.options = options
        self.model, self.task, self.runtime = open_model(options.model, "nli", options)
        found = [i for i, label in enumerate(self.task.labels) if label.lower() in ENTAILMENT]
        if len(found) != 1:
            raise OptionError(f"No label of {options.model} is entailment: it has {', '.join(self.task.labels)}.")
        self.entailment = found[0]

    def scores(self, texts: Sequence[str]) -> Tensor:
        """-> (texts, K)"""
        options, scores = self.options, []
        hypotheses = [options.template.replace("{}", label) for label in options.labels]
        for start in range(0, len(texts), WINDOW):
            pairs = [PairExample(text, each, "") for text in texts[start : start + WINDOW] for each in hypotheses]
            items = self.task.encode(pairs, warn)
            logits = infer(self.model, [item.ids for item in items], self.runtime, options.batch_tokens)
            grouped = torch.stack(logits).unflatten(0, (-1, len(hypotheses)))  # (texts, K, 3)
            scores += [candidate_scores(each, self.entailment, options.printed) for each in grouped]
        return torch.stack(scores)


def measure(options: Options, command: str) -> None:
    """On labelled texts."""
    examples = read_task("sentiment", options.test, warn)
    names = options.names or options.labels
    if unknown := sorted({example.label for example in examples} - set(names)):
        raise OptionError(f"--test has the label {unknown[0]!r}, which is none of {', '.join(names)}: give --names.")
    out = options.out or f"runs/results/zero-shot-{datetime.now():%Y%m%d-%H%M%S}.json"
    check_writable(out)
    zero_shot = ZeroShot(options)
    texts = [example.text for example in examples]
    scores = zero_shot.scores(texts)
    guesses = [names[i] for i in scores.argmax(dim=-1)]
    figures = classification_report([e.label for e in examples], guesses, scores.numpy(), names, options.seed)
    print(show(figures))
    about = provenance(command, options, options.test, [options.seed])
    write_json(out, {"task": "zero-shot", "model": fingerprint(zero_shot.model), "figures": figures, **about})
    print(f"\nWritten: {out}")


def classify(options: Options) -> None:
    """Line by line, JSON lines out."""
    labels = options.labels
    with open_lines(options.file) as lines:
        zero_shot = ZeroShot(options)
        for held in windows(lines, "sentiment"):
            for (number, _), row in zip(held, zero_shot.scores([example.text for _, example in held])):
                scores = {label: round(score, 6) for label, score in zip(labels, row.tolist())}
                print(json.dumps({"line": number, "label": labels[row.argmax()], "scores": scores}, ensure_ascii=False))
            sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """The command.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, "python -m eval zero-shot [FILE] --model FILE --labels A B …", __doc__)
    if options.test:
        measure(options, command_line("zero-shot", arguments))
    else:
        classify(options)
