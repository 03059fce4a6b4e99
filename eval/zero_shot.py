"""Classification by an inference model that has never seen the labels: equation (15)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor

from data import DataError, OptionError
from data.options import check, check_bounds, option, parse_options
from data.tasks import PairExample, read_task

from .checkpoints import fingerprint
from .evaluate import ReadingOptions, open_model
from .inference import infer
from .metrics import classification_report
from .predict import read_line
from .results import command_line, provenance, show, warn, write_json

ENTAILMENT = ("entailment", "implication")
WINDOW = 512  # texts that are held at once


@dataclass(frozen=True)
class Options(ReadingOptions):
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
        check(len(self.names) in (0, len(self.labels)), "--names takes as many names as --labels.")
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
        self.model, self.task, self.machine = open_model(options.model, "nli", options)
        found = [i for i, label in enumerate(self.task.labels) if label.lower() in ENTAILMENT]
        if len(found) != 1:
            raise OptionError(f"No label of {options.model} is entailment: it has {', '.join(self.task.labels)}.")
        self.entailment = found[0]

    def scores(self, texts: Sequence[str]) -> Tensor:
        """-> (texts, K)"""
        options = self.options
        hypotheses = [options.template.replace("{}", label) for label in options.labels]
        pairs = [PairExample(text, hypothesis, "") for text in texts for hypothesis in hypotheses]
        items = self.task.encode(pairs, warn)
        logits = infer(self.model, [item.ids for item in items], self.machine, options.batch_tokens)
        grouped = torch.stack(logits).unflatten(0, (len(texts), len(hypotheses)))  # (texts, K, 3)
        return torch.stack([candidate_scores(each, self.entailment, options.printed) for each in grouped])


def measure(options: Options, command: str) -> None:
    """On labelled texts."""
    examples = read_task("sentiment", options.test, warn)
    names = options.names or options.labels
    unknown = sorted({example.label for example in examples} - set(names))
    check(not unknown, f"--test has the label {unknown[:1]}, which is none of {', '.join(names)}: give --names.")
    zero_shot = ZeroShot(options)
    texts = [example.text for example in examples]
    scores = torch.cat([zero_shot.scores(texts[i : i + WINDOW]) for i in range(0, len(texts), WINDOW)])
    guesses = [names[i] for i in scores.argmax(dim=-1)]
    figures = classification_report([e.label for e in examples], guesses, scores.numpy(), names, options.seed)
    print(show(figures))
    out = options.out or f"runs/results/zero-shot-{datetime.now():%Y%m%d-%H%M%S}.json"
    about = provenance(command, options, options.test, [options.seed])
    write_json(out, {"task": "zero-shot", "model": fingerprint(zero_shot.model), "figures": figures, **about})
    print(f"\nWritten: {out}")


def classify(options: Options) -> None:
    """Line by line, JSON lines out."""
    zero_shot = ZeroShot(options)
    try:
        with open(options.file, "rb") if options.file not in (None, "-") else sys.stdin.buffer as lines:
            held: list[tuple[int, str]] = []
            for number, line in enumerate(lines, 1):
                try:
                    held.append((number, read_line("sentiment", line).text))
                except ValueError as error:
                    warn(f"line {number} is left out: {error}.")
                if len(held) == WINDOW:
                    answer(zero_shot, held)
                    held = []
            answer(zero_shot, held)
    except OSError as error:
        raise DataError(f"{options.file or 'standard input'} cannot be read: {error.strerror}.") from None


def answer(zero_shot: ZeroShot, held: Sequence[tuple[int, str]]) -> None:
    labels = zero_shot.options.labels
    for (number, _), row in zip(held, zero_shot.scores([text for _, text in held]) if held else ()):
        scores = {label: round(score, 6) for label, score in zip(labels, row.tolist())}
        print(json.dumps({"line": number, "label": labels[row.argmax()], "scores": scores}, ensure_ascii=False))
    sys.stdout.flush()


def main(arguments: list[str]) -> None:
    """The command.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, "python -m eval zero-shot --model FILE --labels A B … [FILE]", __doc__)
    if options.test:
        measure(options, command_line("zero-shot", arguments))
    else:
        classify(options)
