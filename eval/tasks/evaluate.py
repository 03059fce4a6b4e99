"""A fine-tuned model on labelled examples: the figures of section 4 with 95 % intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import torch
from torch import Tensor, nn

from data import OptionError
from data.cli import check, check_bounds, option, parse_options
from data.tasks import Example, labels_of, read_task
from model import EncoderConfig
from model.checkpoints.load import check_vocabulary, load_teacher, load_tokenizer
from model.checkpoints.native import PRECISIONS, fingerprint
from model.training.device import Runtime, choose_device, choose_precision

from ..results import check_writable, command_line, provenance, show, warn, write_json
from .batching import BUDGET, TaskSettings, infer
from .ner import NerTask
from .qa import QaTask
from .sequences import SequenceTask

Task = SequenceTask | NerTask | QaTask
TASK_CLASSES = {"sentiment": SequenceTask, "nli": SequenceTask, "ner": NerTask, "qa": QaTask}

CURE = "Say what is what with --label-map: what the data call it = what the model calls it."


@dataclass(frozen=True)
class InferenceOptions:
    """How texts are read and on what they are computed: the same for every command."""

    tokenizer: str | None = option(
        None, "SentencePiece model, or its folder (default: the one beside the model)", "how texts are read",
        metavar="FILE"
    )  # fmt: skip
    max_length: int | None = option(None, "tokens at once (default: all that the model has)", type=int, least=16)
    windows: bool = option(False, "read a text that is longer by windows, instead of cutting it (sentiment)")
    doc_stride: int = option(128, "tokens that neighbouring windows of a context share (qa)", least=0, most=10**4)
    max_answer: int = option(30, "tokens of the longest answer (qa)", least=1, most=10**4)
    language: str = option("fr", "whose articles do not count in an answer (qa)", choices=("fr", "en"))
    device: str = option("auto", "auto (CUDA where there is one, else CPU), cpu, cuda, cuda:1, …", "the machine")
    precision: str = option(
        "auto", "arithmetic of the matrix products; auto: bf16 where the device has it, else fp16 on CUDA, else fp32",
        choices=("auto", *PRECISIONS)
    )  # fmt: skip
    batch_tokens: int = option(BUDGET, "tokens that go through the model together", least=1, most=10**7)


@dataclass(frozen=True)
class Options(InferenceOptions):
    """What is evaluated."""

    model: str | None = option(None, "a fine-tuned model, ours or Hugging Face's", "what is measured", metavar="FILE")
    test: tuple[str, ...] = option((), "labelled examples", nargs="+", metavar="FILE")
    label_map: tuple[str, ...] = option(
        (), "what the data call a label and what the model calls it, several of the model's added up: "
        "'0=1 star,2 stars' '1=4 stars,5 stars'", nargs="+", metavar="DATA=MODEL"
    )  # fmt: skip
    seed: int = option(0, "of the resampling for the intervals", least=0, most=2**63 - 1)
    out: str | None = option(None, "JSON file (default: runs/results/TASK-time.json)", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model names the fine-tuned model to evaluate.")
        check(len(self.test) > 0, "--test names the labelled examples.")


# ---- what several commands share ---------------------------------------------------------------------------------


def task_settings(options: InferenceOptions, model: str, config: EncoderConfig) -> TaskSettings:
    """Raises DataError, OptionError."""
    most = options.max_length or config.max_tokens
    check(most <= config.max_tokens, f"--max-length {most}: the model reads at most {config.max_tokens} tokens.")
    tokenizer = load_tokenizer(options.tokenizer, model)
    check_vocabulary(config, tokenizer)
    return TaskSettings(
        tokenizer,
        most,
        options.windows,
        options.doc_stride,
        options.max_answer,
        options.language,
    )


def choose_runtime(options: InferenceOptions) -> Runtime:
    device = choose_device(options.device)
    return Runtime(device, choose_precision(options.precision, device))


def open_model(path: str, task: str, options: InferenceOptions) -> tuple[nn.Module, Task, Runtime]:
    """A fine-tuned model, ready, with its task.  Raises ModelError, DataError, OptionError."""
    kind, runtime = TASK_CLASSES[task], choose_runtime(options)
    model = load_teacher(path, kind.model, runtime.device)
    runtime.cast_linears(model)
    return model, kind(task_settings(options, path, model.config), getattr(model, "labels", ())), runtime


def predict(
    model: nn.Module, task: Task, examples: Sequence[Example], runtime: Runtime, budget: int, report=warn
) -> list:
    """A prediction for each example."""
    items = task.encode(examples, report)
    return task.decode(infer(model, [item.ids for item in items], runtime, budget), items, examples)


# ---- labels by other names ---------------------------------------------------------------------------------------


def read_label_map(pairs: Sequence[str], labels: Sequence[str]) -> dict[str, list[str]]:
    """What the data call a label -> what the model calls it.  Raises OptionError."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, separator, theirs = pair.partition("=")
        names = theirs.split(",")
        check(bool(separator and name) and name not in found, f"--label-map {pair!r} is not DATA=MODEL, once each.")
        for other in names:
            check(other in labels, f"--label-map {pair!r}: the model has no label {other!r}, but {', '.join(labels)}.")
        found[name] = names
    taken = [name for names in found.values() for name in names]
    check(len(taken) == len(set(taken)), "--label-map gives one of the model's labels twice.")
    return found


def merged(output: Tensor, columns: Sequence[Sequence[int]]) -> Tensor:
    """Logits of groups of labels: a group's probability is the sum of its labels'.  (C,) -> (groups,)"""
    return torch.stack([output[list(group)].logsumexp(dim=0) for group in columns])


def check_labels(labels: Sequence[str], there: Sequence[str], cure: str) -> None:
    """Raises OptionError unless all labels of the data are the model's; cure: what to do, a sentence."""
    unknown = [label for label in there if label not in labels]
    if unknown:
        raise OptionError(
            f"The data have the label {unknown[0]!r}, which the model does not know: its labels are "
            f"{', '.join(labels)}. {cure}"
        )


def evaluate(
    model: nn.Module, task: Task, examples: Sequence[Example], runtime: Runtime, options: Options, report=warn
) -> dict:
    """The figures of one task."""
    label_map = options.label_map
    if isinstance(task, NerTask):
        types = list(dict.fromkeys(label[2:] for label in task.labels if label != "O"))
        names = {theirs: ours for ours, group in read_label_map(label_map, types).items() for theirs in group}
        renamed = [label if label == "O" else label[:2] + names.get(label[2:], label[2:]) for label in task.labels]
        task = NerTask(task.settings, renamed)
        known = {label[2:] for label in renamed if label != "O"}
        there = sorted({tag[2:] for tag in labels_of(examples) if tag != "O"})
        check_labels(sorted(known), there, CURE)
    elif task.labels:
        groups = read_label_map(label_map, task.labels) or {label: [label] for label in task.labels}
        columns = [[task.labels.index(name) for name in group] for group in groups.values()]
        check_labels(list(groups), labels_of(examples), CURE)
        task = type(task)(task.settings, list(groups))
    items = task.encode(examples, report)
    outputs = infer(model, [item.ids for item in items], runtime, options.batch_tokens)
    if task.labels and not isinstance(task, NerTask):
        outputs = [merged(output, columns) for output in outputs]
    return task.report(task.decode(outputs, items, examples), examples, options.seed)


def main(task_name: str, arguments: list[str] | None = None) -> None:
    """The command `python -m eval TASK`.  Raises OptionError, DataError, ModelError."""
    options = parse_options(
        Options, arguments, f"python -m eval {task_name} --model FILE --test FILE [OPTIONS]", __doc__
    )
    if TASK_CLASSES[task_name] is QaTask and options.label_map:
        raise OptionError("--label-map goes with tasks that have labels.")
    out = options.out or f"runs/results/{task_name}-{datetime.now():%Y%m%d-%H%M%S}.json"
    check_writable(out)
    model, task, runtime = open_model(options.model, task_name, options)
    examples = read_task(task_name, options.test, warn)
    figures = evaluate(model, task, examples, runtime, options, warn)
    print(show(figures))
    about = provenance(command_line(task_name, arguments), options, options.test, [options.seed])
    write_json(out, {"task": task_name, "model": fingerprint(model), "figures": figures, **about})
    print(f"\nWritten: {out}")
