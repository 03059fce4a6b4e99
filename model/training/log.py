"""Progress lines, metrics.jsonl, TensorBoard and curves.png of a run."""

import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.cli import note, say, warn
from losses import DistillationLoss

from ..config import EncoderConfig
from .device import Runtime
from .run_state import METRICS, STUDENT
from .state import Diverged, TrainState

TERMS = {"soft_label_loss": "soft", "cosine_loss": "cos", "mlm_loss": "mlm"}


class MetricsLogger:
    """Writes each logged step to the screen, to metrics.jsonl and, if asked for, to TensorBoard.

    On a terminal, with tqdm installed, a progress bar stays below the lines.
    """

    def __init__(self, folder: Path, steps: int, state: TrainState, tensorboard: bool, enabled: bool):
        """enabled: false on all ranks but one.  Warns if metrics.jsonl is shorter than at the checkpoint."""
        self.path, self.steps, self.enabled = folder / METRICS, steps, enabled
        self.writer = self.bar = None
        if not enabled:
            return
        truncate(self.path, state.metrics_bytes)
        if tensorboard:
            self.writer = open_tensorboard(folder, state.step)
        if sys.stderr.isatty():
            self.bar = open_bar(steps, state.step)

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *error) -> None:
        for each in (self.writer, self.bar):
            if each is not None:
                each.close()

    def log(self, record: dict, seconds_left: float) -> int:
        """Logs a step -> the length of metrics.jsonl in bytes."""
        if not self.enabled:
            return 0
        with self.path.open("ab") as file:
            file.write((json.dumps(record) + "\n").encode())
            length = file.tell()
        line = progress_line(record, self.steps, seconds_left)
        if self.bar is not None:
            self.bar.update(record["step"] - self.bar.n)
            self.bar.write(line, file=sys.stdout)
        else:
            say(line)
        for name, value in flatten(record) if self.writer else ():
            self.writer.add_scalar(name, value, record["step"])
        return length


def truncate(path: Path, size: int) -> None:
    """Cuts metrics.jsonl back to its length at the checkpoint: later steps are run again.

    Warns if it is shorter, and cuts it back to its last whole line: the run goes on without the lines that are lost.
    """
    content = path.read_bytes()[:size] if path.exists() else b""
    if len(content) < size:
        warn(f"{path} is shorter than at the last checkpoint: lines of earlier steps are missing from now on.")
        size = content.rfind(b"\n") + 1
    with path.open("ab") as file:
        file.truncate(size)


def open_tensorboard(folder: Path, step: int):
    """TensorBoard's writer, None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        note("--tensorboard needs tensorboard: pip install tensorboard")
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def open_bar(steps: int, step: int):
    """tqdm's progress bar, None if it is not installed."""
    try:
        import tqdm
    except ImportError:
        return None
    return tqdm.tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)


def flatten(record: dict, prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a record and of the dictionaries in it, by their path."""
    result = []
    for name, value in record.items():
        if isinstance(value, dict):
            result += flatten(value, f"{name}/")
        elif isinstance(value, int | float):
            result.append((prefix + name, value))
    return result


def print_models(teacher_name: str, teacher: EncoderConfig | None, student: EncoderConfig, start: str) -> None:
    if teacher is not None:
        print(f"teacher   {teacher_name}: {describe(teacher)}")
    print(f"student   {describe(student)}, from {start}")


def describe(config: EncoderConfig) -> str:
    sizes = f"{config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} heads"
    return f"{sizes}, {config.vocab_size:,} tokens in the vocabulary"


def print_loss(weights: Sequence[float] | None, direction: str, temperature: float) -> None:
    """weights: of equation (13), None without a teacher."""
    if weights is None:
        print("loss      masked LM")
        return
    terms = " + ".join(f"{weight:g} {name}" for weight, name in zip(weights, ("soft label", "cosine", "masked LM")))
    print(f"loss      {terms}, {direction}, temperature {temperature:g}")


def print_run(steps: int, tokens: int, runtime: Runtime, ranks: int, is_demo: bool) -> None:
    """tokens: per step, over all ranks; is_demo: whether the corpus is the demo's."""
    where = f"{runtime.device}, {runtime.precision}, torch {torch.__version__}"
    print(f"run       {steps} steps of {tokens:,} tokens on {where}" + (f", {ranks} ranks" if ranks > 1 else ""))
    if is_demo:
        print("note      the corpus is a demo: sentences about a small invented world. Use --corpus for real text.")


def print_extension(before: int, steps: int, lr: float) -> None:
    """A run that resumes with more steps than it had. lr: the learning rate of its next step."""
    schedule = f"the learning rate is {lr:.1e} now and decays linearly to 0 at step {steps:,}, no longer {before:,}"
    print(f"extended  from {before:,} to {steps:,} steps: {schedule}")


def progress_line(record: dict, steps: int, seconds_left: float) -> str:
    """The losses (terms that are None are left out), learning rate, gradient norm, speed and time left of a step."""
    norm = record["gradient_norm"]
    parts = [
        f"step {record['step']:>{len(str(steps))}}/{steps}",
        f"loss {record['loss']:.4f}",
        *(f"{name} {record[key]:.4f}" for key, name in TERMS.items() if record[key] is not None),
        f"lr {record['learning_rate']:.1e}",
        f"grad norm {'none' if norm is None else f'{norm:.2f}'}",
        f"{record['tokens_per_second']:,.0f} tok/s",
    ]
    if record.get("share_of_peak") is not None:
        parts.append(f"{record['share_of_peak']:.0%} of peak")
    if record["skipped"]:
        parts.append(f"skipped {', '.join(str(each['step']) for each in record['skipped'])}")
    parts.append(f"ETA {duration(seconds_left)}")
    line = "  ".join(parts)
    return f"{line}\n{validation_line(record['held_out'])}" if "held_out" in record else line


def validation_line(held_out: dict[str, float]) -> str:
    parts = [f"validation loss {held_out['loss']:.4f}", f"masked-token accuracy {held_out['accuracy']:.1%}"]
    if "agreement" in held_out:
        parts[-1] += f" (teacher {held_out['teacher_accuracy']:.1%}, agreement {held_out['agreement']:.1%})"
    return "          " + "  ".join([*parts, f"pseudo-perplexity {held_out['pseudo_perplexity']:.1f}"])


def duration(seconds: float) -> str:
    """19 d 03:04:05, or 03:04:05."""
    days, rest = divmod(int(seconds), 86400)
    clock = time.strftime("%H:%M:%S", time.gmtime(rest))
    return f"{days} d {clock}" if days else clock


def metrics_record(
    state: TrainState, grad_norm: Tensor, lr: float, weights: Sequence[float], blocks_per_step: int, peak: float | None
) -> dict:
    """A line of metrics.jsonl: means over all tokens since the last line.  Raises Diverged.

    peak: tokens per second at the peak of all GPUs, None if unknown.
    """
    sums = DistillationLoss(*(torch.tensor(value, dtype=torch.float64) for value in state.sums))
    soft_label, cosine, mlm = (mean.item() for mean in sums.means())
    loss = sums.total(weights).item()
    if not math.isfinite(loss):
        raise Diverged(f"The loss is {loss} at step {state.step}.")
    distils, tokens = bool(weights[0] or weights[1]), round(sums.real_tokens.item())
    speed = tokens / max(state.since_line, 1e-9)
    return {
        "step": state.step,
        "loss": loss,
        "highest_loss": state.highest,
        "soft_label_loss": soft_label if distils else None,
        "cosine_loss": cosine if distils else None,
        "mlm_loss": mlm,
        "learning_rate": lr,
        "gradient_norm": grad_norm.item() if grad_norm.isfinite() else None,
        "tokens": tokens,
        "tokens_per_second": round(speed, 1),
        "share_of_peak": None if peak is None else speed / peak,
        "skipped": [{"step": step, "first_block": (step - 1) * blocks_per_step} for step in state.skipped],
    }


def print_summary(accuracy: dict[str, float], held_out: dict[str, float], on_demo_text: bool) -> None:
    """accuracy: masked-token accuracy of each model; held_out: the student's last validation.

    on_demo_text: whether a teacher that is not the demo's was distilled on the demo's text.
    """
    print()
    if on_demo_text:
        print("Trained on the demo's invented text, not on French: name a corpus with --corpus.")
    print("Masked-token accuracy on held-out text:")
    for name, value in accuracy.items():
        print(f"  {name + ' training' * name.startswith('student'):30} {value:6.1%}")
    if "agreement" in held_out:
        print(f"  {'agreement with the teacher':30} {held_out['agreement']:6.1%}")
    print(f"Pseudo-perplexity of the student: {held_out['pseudo_perplexity']:.2f}")


def print_next_steps(out: Path, is_demo: bool) -> None:
    print(f"\nWritten: {out / STUDENT}, with its tokenizer inside, and {METRICS}.")
    if is_demo:
        print("That was the demo. To distil CamemBERT, fetch it from the hub and use your own text:")
        print("  python convert_weights.py almanach/camembert-base camembert.safetensors")
        print("  python train.py --teacher camembert.safetensors --corpus texts/ --steps 100000 --accumulate 16 \\")
        print("                  --out runs/distilcamembert")
    else:
        print("To open it with transformers:")
        print(f"  python convert_weights.py {shlex.join([str(out / STUDENT), str(out / 'huggingface')])} --to hf")


def draw_curves(folder: Path) -> None:
    """curves.png from metrics.jsonl, if matplotlib is installed."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        note("curves.png needs matplotlib: pip install matplotlib")
        return
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    validated = [line for line in lines if "held_out" in line]
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6), layout="constrained")
    steps = [line["step"] for line in lines]
    for axis, name in zip(axes.flat, ("loss", *TERMS, "learning_rate")):
        axis.plot(steps, [math.nan if line[name] is None else line[name] for line in lines], label="training")
        points = [(line["step"], line["held_out"][name]) for line in validated if name in line["held_out"]]
        if points:
            axis.plot(*zip(*points), "o", label="validation")
            axis.legend()
        axis.set(title=name.replace("_", " "), xlabel="step")
    last = axes.flat[-1]
    for name in ("accuracy", "teacher_accuracy", "agreement"):
        if validated and name in validated[-1]["held_out"]:
            values = [line["held_out"][name] for line in validated]
            last.plot([line["step"] for line in validated], values, "o-", label=name.replace("_", " "))
    last.set(title="masked tokens, validation", xlabel="step", ylim=(0, 1))
    last.legend()
    figure.savefig(folder / "curves.png", dpi=120)
    pyplot.close(figure)
