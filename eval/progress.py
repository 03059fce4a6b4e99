"""What a person sees of a run, and what is kept of it to be seen later: metrics.jsonl, TensorBoard, curves.png."""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from data import DataError
from losses import DistillationLoss
from model import EncoderConfig, MaskedLM, choose_layers

from .account import Account
from .held_out import Diverged
from .machine import Machine
from .processes import Processes

METRICS = "metrics.jsonl"
TERMS = (("soft", "soft_label_loss"), ("cos", "cosine_loss"), ("mlm", "mlm_loss"))


class Screen:
    """The lines of a run: on screen, in metrics.jsonl, and if asked for in TensorBoard.

    On a terminal, with tqdm, a bar stays below them.
    """

    def __init__(self, folder: Path, options, account: Account, first: bool):
        """first: whether this is the process that writes.  Raises DataError for a metrics.jsonl that is too short."""
        self.path, self.steps, self.first = folder / METRICS, options.steps, first
        self.board = self.bar = None
        if not first:
            return
        cut_back(self.path, account.metrics_bytes)
        if options.tensorboard:
            self.board = open_board(folder, account.step)
        if sys.stderr.isatty():
            self.bar = open_bar(options.steps, account.step)

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *error) -> None:
        for each in (self.board, self.bar):
            if each is not None:
                each.close()

    def show(self, record: dict, time_left: float) -> int:
        """A logged step -> how long metrics.jsonl is now, in bytes."""
        if not self.first:
            return 0
        if self.bar is not None:
            self.bar.update(record["step"] - self.bar.n)
            self.bar.write(progress_line(record, self.steps, time_left), file=sys.stdout)
        else:
            print(progress_line(record, self.steps, time_left), flush=True)
        with self.path.open("ab") as file:
            file.write((json.dumps(record) + "\n").encode())
            length = file.tell()
        for name, value in flat(record) if self.board else ():
            self.board.add_scalar(name, value, record["step"])
        return length


def cut_back(path: Path, size: int) -> None:
    """metrics.jsonl as it was at the checkpoint: lines of steps that will be done again go.  Raises DataError."""
    there = path.stat().st_size if path.exists() else 0
    if there < size:
        raise DataError(f"{path} is shorter than when the run stopped. Restore it, or choose another --out.")
    with path.open("ab") as file:
        file.truncate(size)


def open_board(folder: Path, step: int):
    """TensorBoard's writer, None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("note      no curves for TensorBoard: pip install tensorboard", file=sys.stderr)
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def open_bar(steps: int, step: int):
    """tqdm's bar, None where it is not installed."""
    try:
        import tqdm
    except ImportError:
        return None
    return tqdm.tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)


def flat(record: dict, prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a line, with those of what is inside it."""
    result = []
    for name, value in record.items():
        if isinstance(value, dict):
            result += flat(value, f"{name}/")
        elif isinstance(value, int | float):
            result.append((prefix + name, value))
    return result


def progress_line(record: dict, steps: int, time_left: float) -> str:
    """One line a logged step: the losses, the rate, the gradient, the speed, the time left in seconds.

    Terms that are None (no teacher) are left out.
    """
    terms = "".join(f"  {name} {record[key]:.4f}" for name, key in TERMS if record[key] is not None)
    norm = record["gradient_norm"]
    parts = [
        f"step {record['step']:>{len(str(steps))}}/{steps}",
        f"loss {record['loss']:.4f}{terms}",
        f"lr {record['learning_rate']:.1e}",
        f"gradient {'none' if norm is None else f'{norm:.2f}'}",
        f"{record['tokens_per_second']:,.0f} tokens/s",
    ]
    if record.get("share_of_peak") is not None:
        parts.append(f"{record['share_of_peak']:.0%} of peak")
    if record["skipped"]:
        parts.append(f"skipped {', '.join(str(each['step']) for each in record['skipped'])}")
    parts.append(f"{duration(time_left)} left")
    if "held_out" in record:
        held_out = record["held_out"]
        parts[-1] += (
            f"\n          held out: loss {held_out['loss']:.4f}, masked tokens right {held_out['accuracy']:.1%}"
        )
        if "agreement" in held_out:
            parts[-1] += f" (teacher {held_out['teacher_accuracy']:.1%}, the same guess {held_out['agreement']:.1%})"
        parts[-1] += f", pseudo-perplexity {held_out['pseudo_perplexity']:.1f}"
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """19 d 03:04:05, or 03:04:05."""
    days, rest = divmod(int(seconds), 86400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days} d {clock}" if days else clock


def describe_run(options, teacher: MaskedLM | None, student: MaskedLM, machine: Machine, processes: Processes) -> None:
    """What is about to happen, on screen."""
    if teacher is not None:
        print(f"teacher   {options.teacher}: {shape(teacher.config)}")
    start = f"from {options.student}" if options.student else "from random numbers"
    if teacher is not None and not options.student:
        layers = choose_layers(",".join(options.layers), teacher.config.num_layers)
        start = f"from the teacher's layers {', '.join(map(str, layers))}"
    print(f"student   {shape(student.config)}, {start}")
    if teacher is not None:
        print(f"loss      {' + '.join(f'{w:g} {n}' for w, n in zip(options.weights, ('soft', 'cosine', 'mlm')))}, "
              f"{options.direction}, temperature {options.temperature:g}")  # fmt: skip
    else:
        print("loss      masked LM alone")
    tokens = options.batch_size * options.accumulate * options.block_size
    where = f"{machine.device}, {machine.precision}, torch {torch.__version__}"
    where += f", {processes.count} processes" * (processes.count > 1)
    print(f"run       {options.steps} steps of {tokens:,} tokens on {where}")
    if options.corpus == ("demo",):
        print("note      the corpus is a demo: a small made-up world of French sentences. It shows that all works;")
        print("          for a student that knows French, name real text with --corpus.")


def shape(config: EncoderConfig) -> str:
    return f"{config.num_layers} layers of {config.hidden_size}, {config.num_heads} heads, {config.vocab_size:,} words"


def describe_step(
    account: Account, gradient: torch.Tensor, rate: float, weights: Sequence[float], options, peak: float | None
) -> dict:
    """The line of metrics.jsonl: means over all tokens since the last line.  Raises Diverged.

    peak: tokens a second that the machine could do at most, if that is known.
    """
    sums = DistillationLoss(*(torch.tensor(value, dtype=torch.float64) for value in account.sums))
    soft_label, cosine, mlm = (mean.item() for mean in sums.means())
    loss = sums.total(weights).item()
    if not math.isfinite(loss):
        raise Diverged(f"The loss is {loss} at step {account.step}.")
    blocks = options.batch_size * options.accumulate  # of a step: those of step s begin at block (s - 1) * blocks
    distils = bool(weights[0] or weights[1])
    tokens = round(sums.real_tokens.item())
    speed = tokens / max(account.since_line, 1e-9)
    return {
        "step": account.step,
        "loss": loss,
        "highest_loss": account.highest,
        "soft_label_loss": soft_label if distils else None,
        "cosine_loss": cosine if distils else None,
        "mlm_loss": mlm,
        "learning_rate": rate,
        "gradient_norm": gradient.item() if gradient.isfinite() else None,
        "tokens": tokens,
        "tokens_per_second": round(speed, 1),
        "share_of_peak": None if peak is None else speed / peak,
        "skipped": [{"step": step, "first_block": (step - 1) * blocks} for step in account.skipped],
    }


def print_summary(accuracy: dict[str, float], held_out: dict[str, float]) -> None:
    """The end of a run."""
    print("\nHeld-out masked tokens guessed right:")
    for name, share in accuracy.items():
        print(f"  {name:15} {share:6.1%}")
    if "agreement" in held_out:
        print(f"\nThe student's guess is the teacher's: {held_out['agreement']:.1%}")
    print(f"Pseudo-perplexity of the student: {held_out['pseudo_perplexity']:.2f}")


def draw_curves(folder: Path) -> None:
    """curves.png from metrics.jsonl, where matplotlib is installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        print("no curves.png: pip install matplotlib", file=sys.stderr)
        return
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), layout="constrained")
    steps = [line["step"] for line in lines]
    for axis, name in zip(axes.flat, ("loss", "soft_label_loss", "cosine_loss", "mlm_loss", "learning_rate")):
        axis.plot(steps, [math.nan if line[name] is None else line[name] for line in lines], label="training")
        measured = [line for line in lines if name in line.get("held_out", {})]
        if measured:
            axis.plot(
                [line["step"] for line in measured],
                [line["held_out"][name] for line in measured],
                "o",
                label="held out",
            )
            axis.legend()
        axis.set(title=name.replace("_", " "), xlabel="step")
    last = axes.flat[-1]
    measured = [line for line in lines if "held_out" in line]
    for name in ("accuracy", "teacher_accuracy", "agreement"):
        if measured and name in measured[-1]["held_out"]:
            values = [line["held_out"][name] for line in measured]
            last.plot([line["step"] for line in measured], values, "o-", label=name.replace("_", " "))
    last.set(title="held-out masked tokens", xlabel="step", ylim=(0, 1))
    last.legend()
    figure.savefig(folder / "curves.png", dpi=120)
    pyplot.close(figure)
