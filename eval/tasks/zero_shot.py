"""Zero-shot classification: an NLI model classifies texts by labels that it was not trained on, equation (15).

--template makes a hypothesis of each label; the scores are the softmax of the entailment logits over the hypotheses.
The input is one text per line, or JSON lines with "text"; the output is one JSON line for each. With --test, labelled
texts are evaluated instead. An invalid line is skipped; the exit status is then 1, or 2 if no line is valid.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor

from data.cli import OptionError, check, check_bounds, check_paths, option, parse_options, warn
from data.download.models import fetch_models
from data.streams import print_json
from data.tasks import PairExample, read_task
from data.tasks.contents import check_files
from model import SequenceClassifier
from model.checkpoints.load import load_teacher
from model.training.bounds import SEED

from ..results import check_writable, command_line
from .ahead import ahead
from .batching import infer_asked
from .checks import Answers, warn_of_one_answer
from .evaluate import SURROGATE, InferenceOptions, open_model, write_result
from .predict import FILE_HELP, Lines, open_lines, read_chunks
from .sequences import LabelPrediction, classification_report

ENTAILMENT = ("entailment", "implication")
CHUNK = 512  # texts whose pairs with all hypotheses are tokenised and predicted together


@dataclass(frozen=True)
class Options(InferenceOptions):
    file: str | None = option(None, FILE_HELP, "input", positional=True, nargs="?", metavar="FILE")
    model: str | None = option(None, "model fine-tuned on NLI: path, or owner/name on the hub", metavar="MODEL")
    labels: tuple[str, ...] = option((), "at least two labels, worded to fit the template", nargs="+", metavar="LABEL")
    template: str = option("Ce texte parle de {}.", "hypothesis, with {} for the label")
    printed: bool = option(False, "equation (15) as printed: softmax over entailment probabilities instead of logits")
    test: tuple[str, ...] = option((), "labelled texts in sentiment's formats", "evaluation", nargs="+", metavar="FILE")
    names: tuple[str, ...] = option((), "--labels' names in --test in order (default: same)", nargs="+", metavar="NAME")
    seed: int = option(0, "of the bootstrap resamples", **SEED)
    out: str | None = option(None, "JSON file (default: runs/results/zero-shot-TIME.json)", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model is missing: a model fine-tuned on NLI.")
        check(len(set(self.labels)) == len(self.labels) > 1, "--labels must be at least two different labels.")
        check(self.template.count("{}") == 1, f"--template {self.template!r} must contain {{}} exactly once.")
        check(not SURROGATE.search("".join((*self.labels, self.template))), "--labels and --template must be UTF-8.")
        check(len(self.names) in (0, len(self.labels)), "--names must be as many as --labels.")
        check(len(set(self.names)) == len(self.names), "--names has the same name twice.")
        check(bool(self.test) or not (self.names or self.out), "--names and --out are only for --test.")
        check(not (self.test and self.file), "--test already names the texts: leave FILE out.")


def candidate_scores(logits: Tensor, entailment: int, printed: bool = False) -> Tensor:
    """Equation (15), section 4.3.  P(hyp = i ∈ C | pre) = e^P(pre = implication | hyp = i) / Σ_{j ∈ C} e^P(…| hyp = j)

    logits: (K, 3), the NLI model's for one premise with each of the K hypotheses; entailment: index of its label
    implication -> (K,)

    Departure: the exponents here are the logits of implication, as the released models' pipeline has them. As printed
    they are its probabilities, equation (14): between 0 and 1, these give nearly equal scores (of two candidates, none
    more than e / (e + 1) = 0.73). printed=True (--printed) is that form.
    """
    values = logits.softmax(dim=-1) if printed else logits
    return values[:, entailment].softmax(dim=0)


class ZeroShot:
    """An NLI model with the candidate labels.  Raises ModelError, DataError, OptionError."""

    def __init__(self, options: Options):
        self.options = options
        self.model, self.task, self.runtime = open_model(options.model, "nli", options)
        kind = self.model.problem_type
        is_softmax = kind == "single_label_classification"
        check(is_softmax, f"{options.model} is a {kind} model: zero-shot classification needs one with a softmax.")
        found = [i for i, label in enumerate(self.task.labels) if label.lower() in ENTAILMENT]
        names, has = " or ".join(ENTAILMENT), ", ".join(self.task.labels)
        check(len(found) == 1, f"{options.model} is not an NLI model: none of its labels is {names}, but it has {has}.")
        self.entailment = found[0]

    def scores(self, texts: Sequence[str]) -> Tensor:
        """-> (texts, K)"""
        options, scores = self.options, []
        hypotheses = [options.template.replace("{}", label) for label in options.labels]
        chunks = (texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK))
        pairs = ([PairExample(text, each, "") for text in chunk for each in hypotheses] for chunk in chunks)
        for features in ahead(self.task.encode(each, warn) for each in pairs):
            logits = infer_asked(self.model, features, self.runtime, options.batch_tokens)
            by_text = torch.stack(logits).unflatten(0, (-1, len(hypotheses)))  # (texts, K, 3)
            scores += [candidate_scores(each, self.entailment, options.printed) for each in by_text]
        return torch.stack(scores)


def measure(options: Options, command: str) -> None:
    """Evaluates on the labelled texts of --test."""
    examples = read_task("sentiment", options.test, warn, part="test")
    names = options.names or options.labels
    if unknown := sorted({example.label for example in examples} - set(names)):
        raise OptionError(f"--test has the label {unknown[0]!r}, not one of {', '.join(names)}. Map it with --names.")
    out = options.out or f"runs/results/zero-shot-{datetime.now():%Y%m%d-%H%M%S}.json"
    check_writable(out)
    zero_shot = ZeroShot(options)
    scores = zero_shot.scores([example.text for example in examples])
    predicted = [names[i] for i in scores.argmax(dim=-1)]
    answers = [LabelPrediction(name, row) for name, row in zip(predicted, scores)]
    warn_of_one_answer(zero_shot.task, answers, "--test")
    metrics = classification_report([e.label for e in examples], predicted, scores.numpy(), names, options.seed)
    whole = load_teacher(options.model, SequenceClassifier, zero_shot.runtime.device)
    write_result(out, "zero-shot", whole, metrics, command, options)


def classify(options: Options) -> int:
    """Prints a JSON line per valid input line -> the exit status, 1 if lines were left out."""
    labels, counts, answers = options.labels, Lines(), Answers()
    with open_lines(options.file) as lines:
        zero_shot = ZeroShot(options)
        for chunk in read_chunks(lines, "sentiment", counts):
            for (number, _), row in zip(chunk, zero_shot.scores([example.text for _, example in chunk])):
                answers.add(zero_shot.task, [LabelPrediction(labels[row.argmax()], row)])
                scores = {label: round(score, 6) for label, score in zip(labels, row.tolist())}
                print_json({"line": number, "label": labels[row.argmax()], "scores": scores})
            sys.stdout.flush()
    answers.warn_if_one("the input")
    return counts.exit_status


def main(arguments: list[str]) -> int:
    """The command `python -m eval zero-shot` -> its exit status.  Raises OptionError, DataError, ModelError."""
    usage = "python -m eval zero-shot [FILE | --test FILE…] --model MODEL --labels LABEL LABEL… [OPTIONS]"
    options = fetch_models(parse_options(Options, arguments, usage, __doc__), "model", "tokenizer")
    check_paths(options, "file")
    check_files(options.test)
    if options.test:
        measure(options, command_line("zero-shot", arguments))
        return 0
    return classify(options)
