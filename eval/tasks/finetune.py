"""Fine-tunes a masked LM on one of section 4's tasks; with --teacher, it also distils a teacher of the same task.

In the paper's Table 2 the fine-tuned student is 4.20 points of F1 below CamemBERT on NLI and 16.92 on QA (its
conclusion says 5 and 15). Task distillation, which the paper does not have, is meant to reduce that: --teacher is a
model fine-tuned on the task, and the student learns its probabilities beside the labels, for every text, token, or
start and end of an answer.

Training uses --train. After every epoch the model is evaluated on --dev; the best epoch of the best seed is saved.
If the command is stopped, running it again skips the seeds that are finished. data/README.md has the formats.
"""

import hashlib
import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.cli import DataError, OptionError, check, check_bounds, dashed, option, parse_options, say, warn
from data.download.models import fetch_models
from data.features import budget_batches
from data.locks import WAIT_HELP, own
from data.tasks import TASKS, Example, labels_of, read_task
from data.tasks.contents import check_files
from data.tasks.parts import PARTS
from data.tasks.tags import OUTSIDE, types_of
from losses import DIRECTIONS, IGNORE_INDEX, soft_label_loss
from model import SequenceClassifier, save_model
from model.checkpoints.load import load_checkpoint, load_teacher
from model.checkpoints.native import fingerprint
from model.checkpoints.provenance import origins
from model.heads import PROBLEM_TYPES
from model.inference import PRECISIONS, freeze
from model.training.bounds import CLIP, DROPOUT, LR, SEED, TEMPERATURE, WEIGHT_DECAY
from model.training.device import PRECISION_HELP, Runtime
from model.training.optim import learning_rate, make_optimiser, optimiser_step
from model.training.state import Diverged

from ..results import command_line, provenance, write_json
from .batching import Feature, Outputs, TaskSettings, infer, infer_asked, packed_outputs
from .checks import warn_of_one_answer, warn_of_shared_examples
from .evaluate import (
    SEQUENCE_TASKS,
    TASK_CLASSES,
    InferenceOptions,
    Task,
    check_labels,
    check_task,
    choose_runtime,
    make_task,
    predict,
    task_settings,
    training_names,
)
from .ner import NerTask
from .qa import QaTask
from .regression import RegressionTask
from .sequences import SequenceTask

Parts = Mapping[str, Sequence[Example]]  # examples by part
SEEDS_HELP = "one run per seed, of the new head, data order and dropout"
NAMES_HELP = "label or entity type in the data = its name, also for labels that are numbers: 0=entailment 1=neutral"
PROBLEM_TYPE_HELP = f"sentiment, nli: {', '.join(PROBLEM_TYPES)}: a text's labels are one class, several, or a value"
# options that do not affect the result, or whose inputs are compared by content
BY_CONTENT = ("tokenizer", "model", "teacher", "label_map", "train", "dev", "test")
MAY_DIFFER = ("out", "wait", "device", "log_every", "seeds", "batch_tokens", *BY_CONTENT)


@dataclass(frozen=True)
class Options(InferenceOptions):
    model: str | None = option(None, "masked LM: path, or owner/name on the hub", "input and output", metavar="MODEL")
    train: tuple[str, ...] = option((), "labelled examples for training", nargs="+", metavar="FILE")
    dev: tuple[str, ...] = option((), "labelled examples for choosing the best epoch", nargs="+", metavar="FILE")
    test: tuple[str, ...] = option((), "labelled examples for evaluating the best epoch", nargs="+", metavar="FILE")
    problem_type: str = option(PROBLEM_TYPES[0], PROBLEM_TYPE_HELP, choices=PROBLEM_TYPES, metavar="TYPE")
    out: str | None = option(None, "folder for results.json and model.safetensors with its tokenizer", metavar="FOLDER")
    wait: bool = option(False, WAIT_HELP)
    label_map: tuple[str, ...] = option((), NAMES_HELP, nargs="+", metavar="DATA=NAME")

    teacher: str | None = option(None, "model fine-tuned on this task, to distil", "task distillation", metavar="MODEL")
    soft_weight: float = option(0.7, "weight of the teacher's soft labels; the labels have the rest", least=0, most=1)
    temperature: float = option(2.0, "of the softmaxes of teacher and student", **TEMPERATURE)
    direction: str = option(DIRECTIONS[1], "student-teacher is D_KL(student || teacher)", choices=DIRECTIONS)

    epochs: int = option(3, "passes over the training examples", "optimisation", least=1, most=10**4)
    step_tokens: int = option(1024, "tokens per optimiser step", least=16, most=10**7)
    lr: float = option(5e-5, "peak learning rate", **LR)
    warmup: float = option(0.1, "warm-up fraction; the learning rate then decays linearly", least=0, most=1)
    weight_decay: float = option(0.01, "of AdamW, on matrices only", **WEIGHT_DECAY)
    clip: float = option(1.0, "maximum gradient norm", **CLIP)
    precision: str = option("auto", PRECISION_HELP, choices=("auto", *PRECISIONS))
    dropout: float | None = option(None, "in training (default: the model's)", type=float, **DROPOUT)
    seeds: tuple[int, ...] = option((0,), SEEDS_HELP, nargs="+", type=int, **SEED)
    log_every: int = option(50, "steps between progress lines", least=1, most=10**9)
    steps: int | None = option(None, "optimiser steps per seed (default: from --epochs)", type=int, least=1, most=10**9)

    def __post_init__(self):
        check_bounds(self)
        check(self.model is not None, "--model is missing: the masked LM to fine-tune.")
        check(self.out is not None, "--out is missing: the folder for the result.")
        for name in ("train", "dev"):
            check(len(getattr(self, name)) > 0, f"--{name} is missing: files of labelled examples.")
        check(len(set(self.seeds)) == len(self.seeds), "--seeds has the same seed twice.")


class SoftLabels(NamedTuple):
    """How a teacher's probabilities enter the loss, see task_loss."""

    weight: float
    temperature: float
    direction: str


# ---- model and teacher -----------------------------------------------------------------------------------------


def make_model(source: nn.Module, task: Task, dropout: float | None) -> nn.Module:
    """The source's encoder with a head for the task: a new, random one, or the source's if it has the same labels."""
    config = source.config if dropout is None else replace(source.config, dropout=dropout)
    head = (len(task.labels), task.labels) if task.labels else ()
    if task.model is SequenceClassifier:
        head += (task.problem_type,)
    model = task.model(config, *head)
    same = [getattr(source, name, None) == getattr(model, name, None) for name in ("labels", "problem_type")]
    if isinstance(source, task.model) and all(same):
        model.load_state_dict(source.state_dict())
    else:
        model.encoder.load_state_dict(getattr(source, "encoder", source).state_dict())
    return model


def load_task_teacher(path: str | None, kind: type, vocab_size: int, runtime: Runtime) -> nn.Module | None:
    """None without a path.  Raises ModelError, or DataError for another vocabulary size."""
    if path is None:
        return None
    teacher = load_teacher(path, kind, runtime.device)
    if (size := teacher.config.vocab_size) != vocab_size:
        raise DataError(f"The teacher {path} has {size} tokens, the model {vocab_size}: both need the same tokenizer.")
    return teacher


# ---- the loss --------------------------------------------------------------------------------------------------


def task_loss(
    outputs: Outputs, teacher_outputs: Outputs | None, features: Sequence[Feature], task: Task, soft_labels: SoftLabels
) -> Tensor:
    """(1 − a) · cross-entropy with the labels + a · T² · D_KL between teacher and student; a is the weight.

    Both are means over the same targets of the batch: texts, pieces, or starts and ends. Tokens without a target, such
    as `<s>` and `</s>` in NER, count in neither. Without a teacher, the cross-entropy alone. D_KL: see soft_label_loss.
    For regression both are squared errors instead: from the labels, and from the teacher's values.
    """
    logits_and_targets = task.logits_and_targets(outputs, features)
    total, count = cross_entropy_sum(logits_and_targets)
    cross_entropy = total / max(count, 1)
    if teacher_outputs is None:
        return cross_entropy
    weight, temperature, direction = soft_labels
    divergences = []
    of_teacher = task.logits_and_targets(teacher_outputs, features)
    for (logits, targets), (teacher_logits, _) in zip(logits_and_targets, of_teacher):
        if targets.is_floating_point():
            squares = F.mse_loss(logits.float(), teacher_logits.float(), reduction="sum")
            divergences.append((squares, torch.tensor(len(targets), device=squares.device)))
            continue
        has_target = (targets != IGNORE_INDEX).to(logits.device)
        pair = logits.float(), teacher_logits.float()
        divergences.append(soft_label_loss(*pair, has_target, direction=direction, temperature=temperature))
    total, count = (torch.stack(each).sum() for each in zip(*divergences))
    return (1 - weight) * cross_entropy + weight * (total / count)


def cross_entropy_sum(logits_and_targets: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
    """-> the sum over all targets that are not IGNORE_INDEX, in float32; their number

    For the floating-point targets of a regression, the sum of the squared errors.
    """
    sums = []
    for logits, targets in logits_and_targets:
        pair = logits.float(), targets.to(logits.device)
        if targets.is_floating_point():
            sums.append(F.mse_loss(*pair, reduction="sum"))
        else:
            sums.append(F.cross_entropy(*pair, ignore_index=IGNORE_INDEX, reduction="sum"))
    return torch.stack(sums).sum(), sum(int((targets != IGNORE_INDEX).sum()) for _, targets in logits_and_targets)


# ---- a run -----------------------------------------------------------------------------------------------------


def plan_batches(lengths: Sequence[int], options: Options, rng: random.Random) -> list[list[list[int]]]:
    """-> per epoch, its batches as lists of feature indices; --steps batches in all, or those of --epochs

    lengths: number of tokens of each feature. Raises DataError if there are no features.
    """
    if not lengths:
        raise DataError("--train has nothing to train on: no answer is at the offset that the file gives.")
    epochs, steps = [], 0
    while len(epochs) < options.epochs if options.steps is None else steps < options.steps:
        epochs.append(budget_batches(lengths, options.step_tokens, rng))
        steps += len(epochs[-1])
    if options.steps is not None and steps > options.steps:
        epochs[-1] = epochs[-1][: options.steps - steps]
    return epochs


def train_one_seed(
    model: nn.Module, teacher: nn.Module | None, task: Task, data: Parts, runtime: Runtime, options: Options, seed: int
) -> dict:
    """Trains on data["train"] and leaves the model as after the epoch that was best on data["dev"].

    -> {"seed", "epoch", "dev"}: that epoch and its metrics.  Raises Diverged if the loss is not finite.
    If there are questions without an answer, every epoch's threshold is the best on data["dev"], and the best epoch's
    is the model's.
    """
    features = [feature for feature in task.encode(data["train"], warn) if feature.target is not None]
    texts = [feature.ids for feature in features]
    dev_features = task.encode(data["dev"], warn)
    choose_threshold = isinstance(task, QaTask) and needs_threshold(task, data)
    epochs = plan_batches([len(ids) for ids in texts], options, random.Random(seed))
    steps = sum(map(len, epochs))
    teacher_outputs = infer(teacher, texts, runtime, options.batch_tokens) if teacher else None
    soft_labels = SoftLabels(options.soft_weight, options.temperature, options.direction)
    optimiser, scaler = make_optimiser(model, options.lr, options.weight_decay), runtime.grad_scaler()
    best, best_weights, best_predictions, step = None, None, None, 0
    for epoch, batches in enumerate(epochs, 1):
        model.train()
        losses, tokens, start = [], 0, time.monotonic()
        for indices in batches:
            step += 1
            batch = [features[i] for i in indices]
            with runtime.autocast():
                outputs = packed_outputs(model, [texts[i] for i in indices], runtime.device)
            of_teacher = [teacher_outputs[i].to(runtime.device) for i in indices] if teacher else None
            loss = task_loss(outputs, of_teacher, batch, task, soft_labels)
            scaler.scale(loss).backward()
            lr = learning_rate(step, steps, options.lr, options.warmup)
            optimiser_step(model, optimiser, scaler, lr, options.clip)
            losses.append(loss.detach())
            tokens += sum(len(texts[i]) for i in indices)
            if step % options.log_every == 0 or step == steps:
                mean = torch.stack(losses[-options.log_every :]).mean().item()
                speed = tokens / (time.monotonic() - start)
                say(f"seed {seed}  epoch {epoch}  step {step}/{steps}  loss {mean:.4f}  {speed:,.0f} tok/s")
        if not torch.stack(losses).isfinite().all():
            raise Diverged(f"The loss of epoch {epoch} is not finite. Try a lower --lr.")
        with runtime.autocast():
            outputs = infer_asked(model.eval(), dev_features, runtime, options.batch_tokens)
        predictions = task.decode(outputs, dev_features, data["dev"])
        if choose_threshold:
            task = task.with_best_threshold(predictions, data["dev"])
        metrics = task.metrics(predictions, data["dev"], seed)
        value = metrics[task.headline]["value"]
        say(f"seed {seed}  epoch {epoch}  dev {task.headline} {value:.4f}")
        if best is None or value > best["dev"][task.headline]["value"]:
            best, best_predictions = {"seed": seed, "epoch": epoch, "dev": metrics}, predictions
            if isinstance(task, QaTask):
                model.no_answer_threshold = task.settings.no_answer_threshold
            best_weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_weights)
    warn_of_one_answer(task, best_predictions, "--dev")
    return best


def needs_threshold(task: QaTask, data: Parts) -> bool:
    """Whether a threshold for no answer is to be chosen.  Warns if dev cannot serve to choose it."""
    unanswered = {part: any(not example.answers for example in data[part]) for part in ("train", "dev")}
    if not any(unanswered.values()) or task.settings.no_answer_threshold is not None:
        return False
    if not unanswered["dev"]:
        warn("every question in --dev has an answer: the threshold for no answer cannot be chosen there; it is 0.")
    return True


def mean_and_deviation(runs: Sequence[dict], part: str) -> dict:
    """Each metric's mean over the seeds, and its sample standard deviation (n − 1), None for a single seed."""
    found = {}
    for name, metric in runs[0][part].items():
        if isinstance(metric, dict) and "value" in metric:
            values = [run[part][name]["value"] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"mean": statistics.fmean(values), "deviation": deviation}
    return found


def choose_labels(
    task_class: type[Task], settings: TaskSettings, data: Parts, of_teacher: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The labels of the new head: the teacher's, else those in the data; () for qa.  Raises OptionError."""
    if task_class is QaTask:
        return ()
    if task_class is RegressionTask:
        labels = of_teacher or ("LABEL_0",)  # the name that transformers gives a single output
        check(len(labels) == 1, f"The teacher has {len(labels)} outputs; a regression has one value per text here.")
        return labels
    in_data = labels_of([example for examples in data.values() for example in examples])
    if task_class is NerTask:  # of any scheme; a word's later pieces need I-TYPE even if no second word has it
        in_data = types_of(in_data)
        labels = of_teacher or (OUTSIDE, *(f"{prefix}-{kind}" for prefix in "BI" for kind in in_data))
        known = types_of(task_class(settings, labels).tags)
    else:
        known = labels = of_teacher or tuple(in_data)
    check_labels(known, in_data, "The teacher must have been fine-tuned on the same labels.")
    least = 2 if task_class is SequenceTask else 1
    check(len(labels) >= least, f"The data have {len(labels)} different labels, but at least {least} are needed.")
    return labels


def finetune(task_name: str, options: Options, command: str, data: Parts | None = None) -> dict:
    """Fine-tunes one model per seed -> what it writes to results.json.  command: for the provenance

    data: the examples of train, dev and test, by default read from the files. Seeds that results.json in --out already
    holds are not run again. Raises OptionError if it belongs to other inputs; DataError, also while another command is
    in the folder, ModelError, Diverged.
    """
    folder = Path(options.out)
    task_class, runtime = TASK_CLASSES[task_name], choose_runtime(options)
    if task_class.model is SequenceClassifier:
        task_class = SEQUENCE_TASKS[options.problem_type]
    else:
        is_default = options.problem_type == PROBLEM_TYPES[0]
        check(is_default, f"--problem-type is for sentiment and nli, not for {task_name}.")
    check(task_name != "qa" or not options.label_map, "--label-map is only for tasks with labels, not for qa.")
    source = load_checkpoint(options.model).float()
    settings = task_settings(options, options.model, source.config, options.teacher)
    teacher = load_task_teacher(options.teacher, task_class.model, source.config.vocab_size, runtime)
    files = [path for part in PARTS for path in getattr(options, part)]
    from_files = data is None
    if from_files:
        given = {part: getattr(options, part) for part in PARTS if getattr(options, part)}
        reading = {"problem_type": options.problem_type, "label_map": training_names(options.label_map)}
        data = {part: read_task(task_name, paths, warn, part=part, **reading) for part, paths in given.items()}
    about = {"task": task_name, "model": fingerprint(source), "teacher": fingerprint(teacher) if teacher else None}
    if teacher:
        freeze(teacher.encoder, runtime.precision)
    about["tokenizer"] = settings.tokenizer.sha256()
    digests = {part: hashlib.sha256(json.dumps(examples).encode()).hexdigest() for part, examples in data.items()}
    about |= {"examples": digests, **provenance(command, options, files, options.seeds)}
    about |= origins(options, ("model", "teacher"))
    kind = getattr(teacher, "problem_type", options.problem_type)
    check(kind == options.problem_type, f"The teacher is a {kind} model, --problem-type is {options.problem_type}.")
    labels = choose_labels(task_class, settings, data, getattr(teacher, "labels", None))
    task = task_class(settings, labels)
    counts = ", ".join(f"{len(examples):,} {part}" for part, examples in data.items())
    classes = ", ".join(labels) or "start, end"
    if from_files:
        warn_of_shared_examples(data)
    with own(folder, options.wait):
        runs = finished_runs(folder, about)
        say(f"{task_name}: {counts} examples; labels {classes}; {runtime.device}, {runtime.precision}")
        if not runs:
            write_json(folder / "results.json", {**about, "runs": []})  # from now on the folder belongs to this run
        for seed in options.seeds[len(runs) :]:
            torch.manual_seed(seed)
            model = make_model(source, task, options.dropout).to(runtime.device)
            run = train_one_seed(model, teacher, task, data, runtime, options, seed)
            if "test" in data:
                tuned = make_task(task_name, settings, model)  # with the threshold that was chosen on dev
                with runtime.autocast():
                    predictions = predict(model.eval(), tuned, data["test"], runtime, options.batch_tokens)
                run["test"] = tuned.metrics(predictions, data["test"], seed)
                warn_of_one_answer(tuned, predictions, "--test")
            value = run["dev"][task.headline]["value"]
            if value > max((r["dev"][task.headline]["value"] for r in runs), default=-math.inf):
                save_model(model, folder / "model.safetensors", {**about, "run": run}, settings.tokenizer)
            runs.append(run)
            over_seeds = {part: mean_and_deviation(runs, part) for part in ("dev", "test") if part in data}
            write_json(folder / "results.json", {**about, "runs": runs, "over_seeds": over_seeds})
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def finished_runs(folder: Path, about: dict) -> list[dict]:
    """The runs in the folder's results.json, for the first of the seeds.  Raises OptionError if its inputs differ."""
    path = folder / "results.json"
    if not path.exists():
        free = not (folder / "model.safetensors").exists()
        check(free, f"{folder} already holds a model.safetensors. Choose another --out.")
        return []
    try:
        stored, new = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(about))
        same = all(stored[key] == new[key] for key in ("task", "model", "teacher", "tokenizer", "examples"))
        options = {name: value for name, value in new["options"].items() if name not in MAY_DIFFER}
        differing = [name for name, value in options.items() if stored["options"][name] != value]
        runs, seeds = list(stored["runs"]), list(stored["seeds"])
        same &= about["seeds"][: len(runs)] == seeds[: len(runs)] and all(run["seed"] in seeds for run in runs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise OptionError(f"{path} cannot be read. Choose another --out.") from None
    if not same or differing:
        what = dashed(differing[0]) if differing else "model, tokenizer, data or seeds"
        raise OptionError(f"{path} belongs to a run with other inputs ({what}). Choose another --out.")
    if runs:
        say(f"{folder} already has the results of {len(runs)} seed{'s' * (len(runs) > 1)}.")
    return runs[: len(about["seeds"])]


def main(arguments: list[str]) -> None:
    """The command `python -m eval finetune`.  Raises OptionError, DataError, ModelError, Diverged."""
    task_name, rest = (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in TASKS else ("TASK", arguments)
    usage = f"python -m eval finetune {task_name} --model MODEL --train FILE… --dev FILE… --out FOLDER [OPTIONS]"
    if task_name == "TASK":
        check_task(rest, usage)
    options = fetch_models(parse_options(Options, rest, usage, __doc__), "model", "teacher", "tokenizer")
    check_files((*options.train, *options.dev, *options.test))
    result = finetune(task_name, options, command_line("finetune", arguments))
    for part, metrics in result["over_seeds"].items():
        print(f"\n{part}, {len(result['runs'])} seed{'s' * (len(result['runs']) > 1)}")
        for name, metric in metrics.items():
            spread = "" if metric["deviation"] is None else f" ± {metric['deviation']:.4f}"
            print(f"{name:<24} {metric['mean']:.4f}{spread}")
    print(f"\nWritten: {Path(options.out) / 'model.safetensors'} (the best seed on dev), results.json beside it.")
