"""Fine-tuning on one of section 4's tasks, from a masked LM; with --teacher, distilling the task itself.

The paper's student loses 5 points on inference and 17 on questions against its teacher, fine-tuned on labels alone.
--teacher takes a teacher that was fine-tuned on the same task, and the student learns its probabilities beside the
labels: of each label, of each tag, of each start and end of an answer.
"""

import hashlib
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import DataError, OptionError
from data.cli import check, check_bounds, option, parse_options
from data.features import budget_batches
from data.tasks import TASKS, Example, labels_of, read_task
from losses import DIRECTIONS, IGNORE_INDEX, soft_label_loss
from model import QuestionAnswerer, save_model
from model.checkpoints.load import load_checkpoint, load_teacher
from model.checkpoints.native import fingerprint
from model.training.device import Runtime
from model.training.optim import learning_rate, make_optimiser, optimiser_step
from model.training.run_state import check_no_other_tokenizer, copy_tokenizer
from model.training.state import Diverged

from ..results import command_line, provenance, warn, write_json
from .batching import Feature, infer, packed_outputs
from .evaluate import TASK_CLASSES, InferenceOptions, Task, check_labels, choose_runtime, predict, task_settings
from .ner import NerTask, inside

PARTS = ("train", "dev", "test")
MAY_DIFFER = (
    "out",
    "device",
    "log_every",
    "seeds",
    "batch_tokens",
    "tokenizer",
    "model",
    "teacher",
    "train",
    "dev",
    "test",
)


@dataclass(frozen=True)
class Options(InferenceOptions):
    """Every option of a fine-tuning."""

    model: str | None = option(None, "what is fine-tuned: a masked LM, ours or Hugging Face's", "what goes in and out",
                               metavar="FILE")  # fmt: skip
    train: tuple[str, ...] = option((), "labelled examples to learn from", nargs="+", metavar="FILE")
    dev: tuple[str, ...] = option((), "labelled examples that choose the best epoch", nargs="+", metavar="FILE")
    test: tuple[str, ...] = option(
        (), "labelled examples to measure the best on (default: none)", nargs="+", metavar="FILE"
    )
    out: str | None = option(None, "folder for model.safetensors, results.json and the tokenizer", metavar="FOLDER")
    teacher: str | None = option(
        None, "a model fine-tuned on this task, whose probabilities are learnt too", "the teacher of the task",
        metavar="FILE"
    )  # fmt: skip
    soft_weight: float = option(
        0.7, "of the teacher's probabilities; the labels have what is left to 1", least=0, most=1
    )
    temperature: float = option(2.0, "of those probabilities", above=0)
    direction: str = option(DIRECTIONS[1], "divergence, as in train.py", choices=DIRECTIONS)
    epochs: int = option(3, "times through the examples", "the optimiser", least=1, most=10**4)
    step_tokens: int = option(1024, "tokens that a step learns from", least=16, most=10**7)
    lr: float = option(5e-5, "highest learning rate", above=0, most=1e30)
    warmup: float = option(0.1, "share of the steps in which the rate rises, before it falls", least=0, most=1)
    weight_decay: float = option(0.01, "AdamW's, on matrices only", least=0)
    clip: float = option(1.0, "norm that a longer gradient is shortened to", above=0)
    dropout: float | None = option(None, "while it learns (default: the model's)", type=float, least=0, below=1)
    seeds: tuple[int, ...] = option((0,), "one run each, of the head's first values, order and dropout", nargs="+",
                                    type=int, least=0, most=2**62)  # fmt: skip
    log_every: int = option(50, "steps between progress lines", least=1)
    steps: int | None = option(None, "steps of a run (default: what --epochs take)", type=int, least=1, most=10**9)

    def __post_init__(self):
        check_bounds(self)
        for name, what in (("model", "what is fine-tuned"), ("out", "the folder for the result")):
            check(getattr(self, name) is not None, f"--{name} is missing: {what}.")
        for name in ("train", "dev"):
            check(len(getattr(self, name)) > 0, f"--{name} names labelled examples; it is missing.")
        check(len(set(self.seeds)) == len(self.seeds), "--seeds has the same seed twice.")


# ---- model and teacher -----------------------------------------------------------------------------------------


def make_model(source: nn.Module, task: Task, options: Options) -> nn.Module:
    """The source's encoder with a head for the task: new, drawn at random, or its own if that is of this very task."""
    config = source.config if options.dropout is None else replace(source.config, dropout=options.dropout)
    model = task.model(config, *((len(task.labels), task.labels) if task.labels else ()))
    if isinstance(source, task.model) and getattr(source, "labels", ()) == task.labels:
        model.load_state_dict(source.state_dict())
    else:
        model.encoder.load_state_dict(getattr(source, "encoder", source).state_dict())
    return model


def task_teacher(options: Options, runtime: Runtime, kind: type, vocab_size: int) -> nn.Module | None:
    """Frozen.  Raises ModelError, DataError."""
    if options.teacher is None:
        return None
    teacher = load_teacher(options.teacher, kind, runtime.device)
    if teacher.config.vocab_size != vocab_size:
        raise DataError(
            f"The teacher {options.teacher} has {teacher.config.vocab_size} words, the model {vocab_size}: they must "
            "have the same tokenizer."
        )
    runtime.cast_linears(teacher)
    return teacher


# ---- the loss --------------------------------------------------------------------------------------------------


def task_loss(
    outputs: Sequence[Tensor], taught: Sequence[Tensor] | None, items: Sequence[Feature], task: Task, options: Options
) -> Tensor:
    """(1 - a) cross-entropy with the labels + a T² D_KL with the teacher's probabilities; a is --soft-weight.

    Both are means over the batch's targets: texts, pieces, or starts and ends. Without a teacher a is 0.
    """
    logits_and_targets = task.logits_and_targets(outputs, items)
    hard, count = losses_of(logits_and_targets)
    hard = hard / max(count, 1)
    if taught is None:
        return hard
    soft = [
        soft_label_loss(
            logits.float(), their_logits.float(), (targets != IGNORE_INDEX).to(logits.device),
            direction=options.direction, temperature=options.temperature,
        )
        for (logits, targets), (their_logits, _) in zip(logits_and_targets, task.logits_and_targets(taught, items))
    ]  # fmt: skip
    sums, counts = zip(*soft)
    divergence = torch.stack(sums).sum() / torch.stack(counts).sum()
    return (1 - options.soft_weight) * hard + options.soft_weight * divergence


def losses_of(logits_and_targets: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
    """Cross-entropy, summed over all targets that are there; how many those are."""
    pairs = [(logits.float(), targets.to(logits.device)) for logits, targets in logits_and_targets]
    losses = [F.cross_entropy(*pair, ignore_index=IGNORE_INDEX, reduction="sum") for pair in pairs]
    return torch.stack(losses).sum(), sum(int((targets != IGNORE_INDEX).sum()) for _, targets in logits_and_targets)


# ---- a run -----------------------------------------------------------------------------------------------------


def plan(lengths: Sequence[int], options: Options, rng: random.Random) -> list[list[list[int]]]:
    """The batches of each epoch, as lists of items; in all --steps, or --epochs."""
    if not lengths:
        raise DataError("There is nothing to learn in --train: not one answer is where the file says.")
    epochs, steps = [], 0
    while len(epochs) < options.epochs if options.steps is None else steps < options.steps:
        epochs.append(budget_batches(lengths, options.step_tokens, rng))
        steps += len(epochs[-1])
    if options.steps is not None and steps > options.steps:
        epochs[-1] = epochs[-1][: options.steps - steps]
    return epochs


def fine_tune(
    model: nn.Module,
    teacher: nn.Module | None,
    task: Task,
    train: Sequence[Example],
    dev: Sequence[Example],
    runtime: Runtime,
    options: Options,
    seed: int,
) -> dict:
    """Trains the model, and leaves it as it was after the epoch that was best on dev; -> that epoch and its figures.

    Raises Diverged where the loss is no number any more.
    """
    items = [item for item in task.encode(train, warn) if item.target is not None]
    dev_items = task.encode(dev, warn)
    epochs = plan([len(item.ids) for item in items], options, random.Random(seed))
    options = replace(options, steps=sum(map(len, epochs)))
    taught = None if teacher is None else infer(teacher, [item.ids for item in items], runtime, options.batch_tokens)
    optimiser, scaler = make_optimiser(model, options.lr, options.weight_decay), runtime.grad_scaler()
    best, best_state, step = None, None, 0
    for epoch, batches in enumerate(epochs, 1):
        model.train()
        losses, tokens, clock = [], 0, time.monotonic()
        for batch in batches:
            step += 1
            batch_items = [items[i] for i in batch]
            with runtime.autocast():
                outputs = packed_outputs(model, [item.ids for item in batch_items], runtime.device)
            theirs = None if taught is None else [taught[i].to(runtime.device) for i in batch]
            loss = task_loss(outputs, theirs, batch_items, task, options)
            scaler.scale(loss).backward()
            lr = learning_rate(step, options.steps, options.lr, options.warmup)
            optimiser_step(model, optimiser, scaler, lr, options.clip)
            losses.append(loss.detach())
            tokens += sum(len(item.ids) for item in batch_items)
            if step % options.log_every == 0 or step == options.steps:
                mean = torch.stack(losses[-options.log_every :]).mean().item()
                speed = tokens / (time.monotonic() - clock)
                print(
                    f"seed {seed}  epoch {epoch}  step {step}/{options.steps}  loss {mean:.4f}  {speed:,.0f} tokens/s"
                )
        if not torch.stack(losses).isfinite().all():
            raise Diverged(f"The loss of epoch {epoch} is no number.")
        outputs = infer(model.eval(), [item.ids for item in dev_items], runtime, options.batch_tokens)
        figures = task.report(task.decode(outputs, dev_items, dev), dev, seed)
        value = figures[task.headline]["value"]
        print(f"seed {seed}  epoch {epoch}  dev {task.headline} {value:.4f}")
        if best is None or value > best["dev"][task.headline]["value"]:
            best = {"seed": seed, "epoch": epoch, "dev": figures}
            best_state = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(best_state)
    return best


def mean_and_deviation(runs: Sequence[dict], part: str) -> dict:
    """Of every figure over the seeds: mean, and deviation (of a sample, n - 1) where there are several."""
    found = {}
    for name, figure in runs[0][part].items():
        if isinstance(figure, dict) and "value" in figure:
            values = [run[part][name]["value"] for run in runs]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"mean": statistics.fmean(values), "deviation": deviation}
    return found


def finetune(task_name: str, options: Options, command: str, data: dict[str, list[Example]] | None = None) -> dict:
    """The whole command -> what it writes to results.json.

    data: the examples of train, dev and test, where they are not to be read from the files. Seeds whose results
    --out holds already, of the same options and inputs, are not run again.
    Raises OptionError, DataError, ModelError, Diverged.
    """
    folder = Path(options.out)
    kind, runtime = TASK_CLASSES[task_name], choose_runtime(options)
    source = load_checkpoint(options.model).float()
    settings = task_settings(options, options.model, source.config)
    teacher = task_teacher(options, runtime, kind.model, source.config.vocab_size)
    files = [path for part in PARTS for path in getattr(options, part)]
    data = data or {
        part: read_task(task_name, getattr(options, part), warn) for part in PARTS if getattr(options, part)
    }
    about = {"task": task_name, "model": fingerprint(source), "teacher": fingerprint(teacher) if teacher else None}
    about |= {"examples": {part: digest(examples) for part, examples in data.items()}}
    about |= provenance(command, options, files, options.seeds)
    check_no_other_tokenizer(folder, settings.tokenizer)
    runs = finished_runs(folder, about)
    labels = ()
    if kind.model is not QuestionAnswerer:
        there = labels_of([example for examples in data.values() for example in examples])
        pieces_need = [inside(label) for label in there if kind is NerTask]  # I-X, if the words have only B-X
        labels = teacher.labels if teacher else tuple(dict.fromkeys([*there, *pieces_need]))
        check_labels(labels, there, "A teacher of the task needs the task's labels.")
    task = kind(settings, labels)
    counts = ", ".join(f"{len(examples):,} to {part}" for part, examples in data.items())
    print(f"{task_name}: {counts}; labels {', '.join(labels) or 'start, end'}; {runtime.device}, {runtime.precision}")
    if not runs:
        write_json(folder / "results.json", {**about, "runs": []})  # from here on the folder is this run's
    for seed in options.seeds[len(runs) :]:
        torch.manual_seed(seed)
        model = make_model(source, task, options).to(runtime.device)
        run = fine_tune(model, teacher, task, data["train"], data["dev"], runtime, options, seed)
        if "test" in data:
            predictions = predict(model.eval(), task, data["test"], runtime, options.batch_tokens, warn)
            run["test"] = task.report(predictions, data["test"], seed)
        if run["dev"][task.headline]["value"] > max((r["dev"][task.headline]["value"] for r in runs), default=-1.0):
            save_model(model, folder / "model.safetensors", {**about, "run": run})
        runs.append(run)
        parts = [part for part in ("dev", "test") if part in data]
        write_json(
            folder / "results.json",
            {**about, "runs": runs, "over_seeds": {part: mean_and_deviation(runs, part) for part in parts}},
        )
    copy_tokenizer(folder, settings.tokenizer)
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def digest(examples: Sequence[Example]) -> str:
    return hashlib.sha256(json.dumps(examples).encode()).hexdigest()


def finished_runs(folder: Path, about: dict) -> list[dict]:
    """What results.json there has of the seeds asked for.  Raises OptionError if it is of something else."""
    path = folder / "results.json"
    if not path.exists():
        check(not (folder / "model.safetensors").exists(), f"{folder} holds a model.safetensors. Choose another --out.")
        return []
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        same = all(there[key] == json.loads(json.dumps(about[key])) for key in ("task", "model", "teacher", "examples"))
        differing = [n for n, value in json.loads(json.dumps(about["options"])).items() if there["options"][n] != value]
        runs, seeds = list(there["runs"]), list(there["seeds"])
        same &= about["seeds"][: len(runs)] == seeds[: len(runs)] and all(run["seed"] in seeds for run in runs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise OptionError(f"{path} cannot be read. Choose another --out, or remove it.") from None
    differing = [name for name in differing if name not in MAY_DIFFER]
    if not same or differing:
        what = f"--{differing[0].replace('_', '-')}" if differing else "model, data or seeds"
        raise OptionError(f"{path} is the result of other inputs ({what}). Choose another --out, or remove it.")
    if runs:
        print(f"{folder} has the results of {len(runs)} seed{'s' * (len(runs) > 1)} already.")
    return runs[: len(about["seeds"])]


def main(arguments: list[str]) -> None:
    """The command.  Raises OptionError, DataError, ModelError, Diverged."""
    task_name, rest = (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in TASKS else ("TASK", arguments)
    usage = f"python -m eval finetune {task_name} --model FILE --train FILE --dev FILE --out FOLDER [OPTIONS]"
    if task_name == "TASK" and not {"-h", "--help"} & set(rest):
        raise OptionError(f"Name a task: {', '.join(TASKS)}.\n\nusage: {usage}")
    options = parse_options(Options, rest, usage, __doc__)
    result = finetune(task_name, options, command_line("finetune", arguments))
    for part, figures in result["over_seeds"].items():
        print(f"\n{part}, {len(result['runs'])} seed{'s' * (len(result['runs']) > 1)}")
        for name, figure in figures.items():
            spread = "" if figure["deviation"] is None else f" ± {figure['deviation']:.4f}"
            print(f"{name:<24} {figure['mean']:.4f}{spread}")
    print(f"\nWritten: {Path(options.out) / 'model.safetensors'} (the best seed on dev), results.json beside it.")
