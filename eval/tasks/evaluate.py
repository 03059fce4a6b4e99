"""Evaluates a fine-tuned model on labelled examples: the metrics of section 4 with 95 % confidence intervals.

The metrics go to the screen and, with the command and the hashes of the inputs, to a JSON file. data/README.md has the
formats of the examples. With --precision int8, the model is also evaluated in fp32: equal_to_fp32 is the share of
labels (of texts, words, answers) that are the same in both.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import torch
from torch import Tensor, nn

from data.cli import OptionError, check, check_bounds, did_you_mean, option, parse_options, warn
from data.download.models import fetch_models
from data.features import join_words
from data.tasks import TASKS, Example, TextExample, labels_of, read_task
from data.tasks.contents import check_files
from data.tasks.sequences import UNDECIDED
from data.tasks.tags import OUTSIDE, types_of
from model import EncoderConfig, QuestionAnswerer, SequenceClassifier
from model.checkpoints.load import (
    TOKENIZER_HELP,
    check_vocabulary,
    int8_file,
    load_frozen,
    load_teacher,
    load_tokenizer,
)
from model.checkpoints.native import fingerprint
from model.heads import PROBLEM_TYPES
from model.training.bounds import SEED
from model.training.device import (
    DEVICE_HELP,
    INFERENCE_PRECISION_HELP,
    INFERENCE_PRECISIONS,
    Runtime,
    choose_device,
    choose_precision,
)

from ..results import check_writable, command_line, format_metrics, provenance, write_json
from .batching import BUDGET, Report, TaskSettings, infer_asked
from .checks import share_equal, warn_of_one_answer
from .multi_label import MultiLabelTask
from .ner import NerTask
from .qa import QaTask
from .regression import RegressionTask
from .sequences import SequenceTask

Task = SequenceTask | NerTask | QaTask
TASK_CLASSES = {"sentiment": SequenceTask, "nli": SequenceTask, "ner": NerTask, "qa": QaTask}
SEQUENCE_TASKS = {task.problem_type: task for task in (SequenceTask, MultiLabelTask, RegressionTask)}
LABEL_MAP_HELP = "data's label or entity type = model's; probabilities of several are summed: '0=1 star,2 stars'"
LABEL_MAP_HINT = "Map the labels with --label-map DATA=MODEL: the name in the data = the model's name."
THRESHOLD_HELP = "qa: no answer where the logits of <s> exceed the best span's by more (default: the model's, if any)"
SURROGATE = re.compile("[\ud800-\udfff]")
MODEL_HELP = "fine-tuned model: path, or owner/name on the hub"


@dataclass(frozen=True)
class InferenceOptions:
    """Tokenisation and device, the same for every command."""

    tokenizer: str | None = option(None, TOKENIZER_HELP, "tokenisation", metavar="PATH")
    max_length: int | None = option(
        None, "tokens per window (default: the model's maximum)", type=int, least=16, most=10**5
    )
    windows: bool = option(False, "sentiment: average over all windows of a long text, instead of truncating it")
    doc_stride: int = option(128, "qa: tokens shared by neighbouring windows of a context", least=0, most=10**4)
    max_answer: int = option(30, "qa: maximum number of tokens of an answer", least=1, most=10**4)
    no_answer_threshold: float | None = option(None, THRESHOLD_HELP, type=float, least=-1e9, most=1e9)
    language: str = option("fr", "qa: language whose articles are ignored in the metrics", choices=("fr", "en"))
    device: str = option("auto", DEVICE_HELP, "device")
    precision: str = option("auto", INFERENCE_PRECISION_HELP, choices=("auto", *INFERENCE_PRECISIONS))
    batch_tokens: int = option(BUDGET, "tokens per inference batch", least=1, most=10**7)


@dataclass(frozen=True)
class Options(InferenceOptions):
    model: str | None = option(None, MODEL_HELP, "input and output", metavar="MODEL")
    test: tuple[str, ...] = option((), "labelled examples", nargs="+", metavar="FILE")
    label_map: tuple[str, ...] = option((), LABEL_MAP_HELP, nargs="+", metavar="DATA=MODEL")
    as_text: bool = option(False, "ner: find the entities in the words joined to running text, as predict does")
    seed: int = option(0, "of the bootstrap resamples", **SEED)
    out: str | None = option(None, "JSON file (default: runs/results/TASK-TIME.json)", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model is missing: the fine-tuned model to evaluate.")
        check(len(self.test) > 0, "--test is missing: files of labelled examples.")


# ---- shared by several commands --------------------------------------------------------------------------------


def check_task(arguments: Sequence[str], usage: str) -> None:
    """For arguments that do not begin with a task.  Raises OptionError unless they ask for help or the version."""
    if not {"-h", "--help", "--version"} & set(arguments):
        word = arguments[0] if arguments and not arguments[0].startswith("-") else None
        wrong = f"There is no task {word}.{did_you_mean(word, TASKS)}" if word else "The task is missing."
        raise OptionError(f"{wrong} The tasks are {', '.join(TASKS)}.\n\nusage: {usage}")


def task_settings(
    options: InferenceOptions, model: str, config: EncoderConfig, teacher: str | None = None
) -> TaskSettings:
    """Raises OptionError if --max-length exceeds the model's, DataError for a tokenizer that does not match it.

    teacher: a model that is used with it, and so must have the same tokenizer.
    """
    length, most = options.max_length or config.max_tokens, config.max_tokens
    check(length <= most, f"--max-length {length} is too long: the model takes at most {most} tokens.")
    tokenizer = load_tokenizer(options.tokenizer, model, teacher)
    check_vocabulary(config, tokenizer)
    qa = options.doc_stride, options.max_answer, options.language, options.no_answer_threshold
    return TaskSettings(tokenizer, length, options.windows, *qa)


def choose_runtime(options: InferenceOptions, model: str | None = None) -> Runtime:
    """model: that is to be run; with --precision auto, a CPU runs an int8 file in int8."""
    device, precision = choose_device(options.device), options.precision
    if precision == "auto" and device.type == "cpu" and model and int8_file(model):
        precision = "int8"
    return Runtime(device, choose_precision(precision, device))


def open_model(path: str, task: str, options: InferenceOptions) -> tuple[nn.Module, Task, Runtime]:
    """A fine-tuned model for inference, with its task.  Raises ModelError, DataError, OptionError."""
    runtime = choose_runtime(options, path)
    model = load_frozen(path, TASK_CLASSES[task].model, runtime.device, runtime.precision)
    return model, make_task(task, task_settings(options, path, model.config), model), runtime


def make_task(name: str, settings: TaskSettings, model: nn.Module) -> Task:
    """The task as the model understands it: with its labels, its problem_type, its threshold for no answer."""
    if isinstance(model, SequenceClassifier):
        return SEQUENCE_TASKS[model.problem_type](settings, model.labels)
    if isinstance(model, QuestionAnswerer) and settings.no_answer_threshold is None:
        settings = replace(settings, no_answer_threshold=model.no_answer_threshold)
    return TASK_CLASSES[name](settings, getattr(model, "labels", ()))


def predict(
    model: nn.Module, task: Task, examples: Sequence[Example], runtime: Runtime, budget: int, report: Report = warn
) -> list:
    """One prediction per example, of the kind of the task.

    budget: tokens per batch; report: called with a sentence if texts were truncated.
    """
    features = task.encode(examples, report)
    outputs = infer_asked(model, features, runtime, budget)
    return task.decode(outputs, features, examples)


def parse_label_map(pairs: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """DATA=NAME or DATA=NAME,NAME of each pair -> {label in the data: names}.  Raises OptionError."""
    label_map: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        label, separator, names = pair.partition("=")
        targets = tuple(names.split(","))
        check(bool(separator and label) and all(targets), f"--label-map {pair!r} must have the form DATA=NAME.")
        check(label not in label_map, f"--label-map gives the data's label {label!r} twice.")
        label_map[label] = targets
    return label_map


def new_names(label_map: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """{label in the data: name of its class}; labels that are mapped to the same are one class."""
    return {label: ",".join(targets) for label, targets in label_map.items()}


def training_names(pairs: Sequence[str]) -> dict[str, str]:
    """--label-map -> {label in the data: its name}.  Raises OptionError."""
    label_map = parse_label_map(pairs)
    for label, names in label_map.items():
        check(len(names) == 1, f"--label-map gives the label {label!r} several names, {', '.join(names)}: give it one.")
    return {label: name for label, (name,) in label_map.items()}


def check_labels(labels: Sequence[str], in_data: Sequence[str], hint: str) -> None:
    """Raises OptionError unless all labels in the data are the model's.  hint: what to do, a sentence"""
    known = f"its labels are {', '.join(labels)}. {hint}"
    for label in in_data:
        check(label in labels, f"The data have the label {label!r}, which the model does not have: {known}")


# ---- evaluation ------------------------------------------------------------------------------------------------


def check_targets(label_map: Mapping[str, Sequence[str]], labels: Sequence[str]) -> None:
    """Raises OptionError unless the map's values are labels of the model, each in one class.  label_map: by class"""
    used = [target for targets in label_map.values() for target in targets]
    for target in used:
        known = f"its labels are {', '.join(labels)}"
        check(target in labels, f"--label-map: the model has no label {target!r}, {known}.")
        check(used.count(target) == 1, f"--label-map gives the model's label {target!r} to two classes.")


def merge_logits(output: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """(C,) -> (groups,): logits whose softmax gives each group of labels the sum of its labels' probabilities."""
    return torch.stack([output[list(group)].logsumexp(dim=0) for group in groups])


def evaluate(
    model: nn.Module,
    task: Task,
    examples: Sequence[Example],
    runtime: Runtime,
    options: Options,
    in_fp32: nn.Module | None = None,
) -> dict:
    """The metrics of one task.  Raises OptionError, DataError.

    in_fp32: the same model in fp32, to compare with: equal_to_fp32 and its headline figure are then added.
    With --label-map, the classes are its values: a label of the model, or several whose probabilities are summed. The
    labels of the examples are the names of the classes, see new_names.
    """
    groups, given, label_map = None, examples, parse_label_map(options.label_map)
    if isinstance(task, NerTask):  # numbers are mapped to tags, when the file is read
        label_map = {label: targets for label, targets in label_map.items() if not label.isdecimal()}
    classes = {",".join(targets): targets for targets in label_map.values()}
    if isinstance(task, NerTask):
        check_targets(classes, [*types_of(task.tags), OUTSIDE])
        names = {target: name for name, targets in classes.items() for target in targets}
        names |= dict.fromkeys(label_map.get(OUTSIDE, ()), OUTSIDE)  # types that the data do not mark
        task = NerTask(task.settings, [tag[:2] + names.get(tag[2:], tag[2:]) for tag in task.tags])  # O has no type
        check_labels(types_of(task.tags), types_of(labels_of(examples)), LABEL_MAP_HINT)
        if options.as_text:
            given = [TextExample(join_words(example.words)[0], "") for example in examples]
    elif isinstance(task, RegressionTask):
        check(not options.label_map, "--label-map is for labels, but the model is a regression: its output is a value.")
    elif isinstance(task, MultiLabelTask):
        check_targets(classes, task.labels)
        several = [name for name, targets in classes.items() if len(targets) > 1]
        check(not several, f"--label-map gives {several} several labels, whose probabilities add up in a softmax only.")
        check_labels(task.labels, labels_of(examples), LABEL_MAP_HINT)
    elif isinstance(task, SequenceTask):
        if UNDECIDED not in task.labels:
            classes.pop(UNDECIDED, None)  # -1=-: such examples were skipped when the file was read
        check_targets(classes, task.labels)
        in_data = labels_of(examples)
        unmapped = [label for label in task.labels if label in in_data or not classes]
        classes |= {label: (label,) for label in unmapped}
        check_labels(list(classes), in_data, LABEL_MAP_HINT)
        check_targets(classes, task.labels)
        groups = [[task.labels.index(target) for target in targets] for targets in classes.values()]
        task = SequenceTask(task.settings, list(classes))
    features = task.encode(given, warn)

    def predictions_of(model: nn.Module) -> list:
        outputs = infer_asked(model, features, runtime, options.batch_tokens)
        if groups is not None:
            outputs = [merge_logits(output, groups) for output in outputs]
        return task.decode(outputs, features, given)

    metrics = task.text_metrics if options.as_text else task.metrics
    predictions = predictions_of(model)
    warn_of_one_answer(task, predictions, "--test")
    figures = metrics(predictions, examples, options.seed)
    if in_fp32 is not None:
        others = predictions_of(in_fp32)
        if (share := share_equal(task, predictions, others)) is not None:
            figures["equal_to_fp32"] = share
        figures[f"{task.headline}_in_fp32"] = metrics(others, examples, options.seed)[task.headline]
    return figures


def write_result(out: str, task_name: str, model: nn.Module, metrics: dict, command: str, options) -> None:
    """Writes the metrics with their provenance, then prints them.

    model: as it is in its file, in float32, not frozen; options: the command's, with test and seed
    """
    about = provenance(command, options, options.test, [options.seed])
    write_json(out, {"task": task_name, "model": fingerprint(model), "figures": metrics, **about})
    print(f"{format_metrics(metrics)}\n\nWritten: {out}")


def main(task_name: str, arguments: list[str]) -> None:
    """The command `python -m eval TASK`.  Raises OptionError, DataError, ModelError."""
    usage = f"python -m eval {task_name} --model MODEL --test FILE… [OPTIONS]"
    options = fetch_models(parse_options(Options, arguments, usage, __doc__), "model", "tokenizer")
    check_files(options.test)
    check(task_name == "ner" or not options.as_text, "--as-text is only for ner.")
    check(task_name != "qa" or not options.label_map, "--label-map is only for tasks with labels, not for qa.")
    out = options.out or f"runs/results/{task_name}-{datetime.now():%Y%m%d-%H%M%S}.json"
    check_writable(out)
    model, task, runtime = open_model(options.model, task_name, options)
    examples = read_task(
        task_name,
        options.test,
        warn,
        getattr(model, "problem_type", PROBLEM_TYPES[0]),
        label_map=new_names(parse_label_map(options.label_map)),
        part="test",
    )
    whole = load_teacher(options.model, type(model), runtime.device)
    metrics = evaluate(model, task, examples, runtime, options, whole if runtime.precision == "int8" else None)
    write_result(out, task_name, whole, metrics, command_line(task_name, arguments), options)
