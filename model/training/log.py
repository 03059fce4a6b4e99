"""The figures of a run: each logged step on the screen, in metrics.jsonl and in TensorBoard."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.cli import note, warn
from data.outputs import make_folder, open_to_append

from .run_state import METRICS
from .screen import Screen, duration
from .state import Diverged, TrainState, means_and_total

EXTRA_TERMS = {"hidden_state_loss": "hidden", "relation_loss": "relations"}  # beyond the paper
TERMS = {"soft_label_loss": "soft", "cosine_loss": "cos", "mlm_loss": "mlm", **EXTRA_TERMS}


class MetricsLogger:
    """Writes held-out figures and logged steps to the screen, to metrics.jsonl and, if asked for, to TensorBoard."""

    def __init__(self, folder: Path, steps: int, state: TrainState, tensorboard: bool, enabled: bool):
        """enabled: false on all ranks but one.  Warns if metrics.jsonl is shorter than at the checkpoint."""
        self.path, self.enabled = folder / METRICS, enabled
        self.writer = self.screen = None
        if not enabled:
            return
        truncate(self.path, state.metrics_bytes)
        if tensorboard:
            self.writer = open_tensorboard(folder, state.step)
        self.screen = Screen(steps, state.step)

    def __enter__(self) -> "MetricsLogger":
        return self

    def __exit__(self, *error) -> None:
        for each in (self.writer, self.screen):
            if each is not None:
                each.close()

    def start(self) -> None:
        """The steps begin: on a terminal, a bar is drawn."""
        if self.enabled:
            self.screen.start()

    def begin(self, what: str) -> None:
        """what: the step or validation that runs from now on, for a message if it takes long."""
        if self.enabled:
            self.screen.begin(what)

    def complete(self, step: int) -> None:
        """Every step, whether it is logged or not."""
        if self.enabled:
            self.screen.complete(step)

    def log(self, record: dict, seconds_left: float = 0.0) -> int:
        """Logs a step, or step 0 with held-out figures alone -> the length of metrics.jsonl in bytes."""
        if not self.enabled:
            return 0
        with open_to_append(self.path) as file:
            file.write((json.dumps(record) + "\n").encode())
            length = file.tell()
        label = self.screen.label(record["step"])
        if "loss" in record:
            short = f"loss {record['loss']:.4f}, {record['tokens_per_second']:,.0f} tok/s"
            self.screen.show(progress_line(record, label, seconds_left), short, is_odd=bool(record["skipped"]))
        if "held_out" in record:
            self.screen.line(held_out_line(record["held_out"], label))
            self.screen.begin_step()
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
    if path.exists() and path.stat().st_size > size:
        with open_to_append(path) as file:
            file.truncate(size)


def open_tensorboard(folder: Path, step: int):
    """TensorBoard's writer, None if it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        note("--tensorboard needs tensorboard: pip install tensorboard")
        return None
    make_folder(folder / "tensorboard")
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def flatten(record: dict, prefix: str = "") -> list[tuple[str, float]]:
    """The numbers of a record and of the dictionaries in it, by their path."""
    result = []
    for name, value in record.items():
        if isinstance(value, dict):
            result += flatten(value, f"{name}/")
        elif isinstance(value, int | float):
            result.append((prefix + name, value))
    return result


def progress_line(record: dict, label: str, seconds_left: float) -> str:
    """The losses (terms that are None are left out), learning rate, gradient norm, speed and time left of a step."""
    norm = record["gradient_norm"]
    parts = [
        label,
        f"loss {record['loss']:.4f}",
        *(f"{name} {record[key]:.4f}" for key, name in TERMS.items() if record.get(key) is not None),
        f"lr {record['learning_rate']:.1e}",
        f"grad norm {'none' if norm is None else f'{norm:.2f}'}",
        f"{record['tokens_per_second']:>7,.0f} tok/s",
    ]
    if record.get("share_of_peak") is not None:
        parts.append(f"{record['share_of_peak']:.0%} of peak")
    if record["skipped"]:
        parts.append(f"skipped {', '.join(str(each['step']) for each in record['skipped'])}")
    parts.append(f"ETA {duration(seconds_left)}")
    return "  ".join(parts)


def held_out_line(held_out: dict[str, float], label: str) -> str:
    """Of a validation, which is without dropout: its loss may be below that of training."""
    parts = [f"{label}  held-out loss {held_out['loss']:.4f}", f"masked-token accuracy {held_out['accuracy']:.1%}"]
    if "agreement" in held_out:
        parts[-1] += f" (teacher {held_out['teacher_accuracy']:.1%}, agreement {held_out['agreement']:.1%})"
    return "  ".join([*parts, f"pseudo-perplexity {held_out['pseudo_perplexity']:.1f}"])


def metrics_record(
    state: TrainState, grad_norm: Tensor, lr: float, weights: Sequence[float], blocks_per_step: int, peak: float | None
) -> dict:
    """A line of metrics.jsonl: means over all tokens since the last line.  Raises Diverged.

    weights: of equation (13), and of the terms beyond the paper, which have a figure if their weight is not 0.
    peak: tokens per second at the peak of all GPUs, None if unknown.
    """
    sums = torch.tensor(state.sums, dtype=torch.float64)
    means, total = means_and_total(sums, weights)
    (soft_label, cosine, mlm, *extra), loss = (mean.item() for mean in means), total.item()
    if not math.isfinite(loss):
        raise Diverged(f"The loss is {loss} at step {state.step}.")
    distils, tokens = bool(weights[0] or weights[1]), round(sums[3].item())
    speed = tokens / max(state.since_line, 1e-9)
    return {
        "step": state.step,
        "loss": loss,
        "highest_loss": state.highest,
        "soft_label_loss": soft_label if distils else None,
        "cosine_loss": cosine if distils else None,
        "mlm_loss": mlm,
        **{name: mean for name, mean, weight in zip(EXTRA_TERMS, extra, weights[3:]) if weight},
        "learning_rate": lr,
        "gradient_norm": grad_norm.item() if grad_norm.isfinite() else None,
        "tokens": tokens,
        "tokens_per_second": round(speed, 1),
        "share_of_peak": None if peak is None else speed / peak,
        "skipped": [{"step": step, "first_block": (step - 1) * blocks_per_step} for step in state.skipped],
    }
