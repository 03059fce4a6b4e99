"""curves.png: the losses, the learning rate and the accuracy of a run, from its metrics.jsonl."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

from data.cli import note

from ..checkpoints.native import atomic_file
from .run_state import METRICS

CURVES = "curves.png"
LOSSES = {
    "loss": "loss, equation (13)",
    "soft_label_loss": "soft-label loss, equation (10)",
    "cosine_loss": "cosine loss, equation (11)",
    "mlm_loss": "masked-LM loss, equation (12)",
    "hidden_state_loss": "hidden-state loss, beyond the paper",
    "relation_loss": "attention-relation loss, beyond the paper",
}
WITH_MORE = "loss, equation (13); in training with terms beyond it"
TRAINING, HELD_OUT, TEACHER, BEFORE = "#8ab4d8", "#c2410c", "#15803d", "#737373"  # colours
RATE_POINTS = 2000  # of the learning rate's curve at most


def read_lines(path: Path) -> list[dict]:
    """The lines of metrics.jsonl that can be read: a damaged one costs its point, not the run."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if type(line) is dict and type(line.get("step")) is int:
                lines.append(line)
    return lines


def series(lines: list[dict], name: str) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """A figure's points (step, value) in training, and on held-out text from before the first step to the end."""
    training = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    held_out = [(line["step"], line["held_out"][name]) for line in lines if name in line.get("held_out", {})]
    return training, held_out


def learning_rates(lines: list[dict], steps: int, rate: Callable[[int], float]) -> list[tuple[int, float]]:
    """(step, learning rate) of the schedule; the logged ones as long as those were of another, before an extension."""
    logged = [(line["step"], line["learning_rate"]) for line in lines if "learning_rate" in line]
    extended = max((step for step, value in logged if not math.isclose(value, rate(step), rel_tol=1e-6)), default=0)
    schedule = [(step, rate(step)) for step in range(extended + 1, steps + 1, math.ceil(steps / RATE_POINTS))]
    return [point for point in logged if point[0] <= extended] + schedule


def draw_curves(folder: Path, steps: int, rate: Callable[[int], float], dropout: float) -> None:
    """Writes curves.png if matplotlib is installed.

    rate: the learning rate of each of the steps, of which metrics.jsonl has only the logged ones; dropout: of the
    student in training.
    """
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        note(f"{CURVES} needs matplotlib: pip install matplotlib")
        return
    lines = read_lines(folder / METRICS)
    found = {name: points for name in LOSSES if (points := series(lines, name))[0]}
    titles = LOSSES | ({"loss": WITH_MORE} if {"hidden_state_loss", "relation_loss"} & found.keys() else {})
    if found.keys() <= {"loss", "mlm_loss"}:  # masked LM alone
        found = {"mlm_loss": series(lines, "mlm_loss")}
    panels = len(found) + 2
    rows = 1 if panels == 3 else 2
    columns = math.ceil(panels / rows)
    figure, axes = pyplot.subplots(rows, columns, layout="constrained", squeeze=False)
    figure.set_size_inches(14 / 3 * columns, 4 * rows)
    figure.suptitle(f"{folder}, {steps:,} steps")
    names = "training text", "held-out text"
    if dropout:  # the reason why the second may lie below the first
        names = f"training text, with dropout {dropout:g}", "held-out text, without dropout"
    for axis, (name, (training, held_out)) in zip(axes.flat, found.items()):
        axis.plot(*zip(*training), color=TRAINING, label=names[0])
        if held_out:
            axis.plot(*zip(*held_out), "o-", color=HELD_OUT, markersize=4, label=names[1])
            mark_before(axis, held_out, ".3g")
        if teacher := [line["held_out"] for line in lines if f"teacher_{name}" in line.get("held_out", {})]:
            axis.axhline(teacher[-1][f"teacher_{name}"], color=TEACHER, linestyle="--", label="teacher, held-out text")
        axis.set_title(titles[name])
    draw_accuracy(axes.flat[panels - 2], lines)
    axes.flat[panels - 1].plot(*zip(*learning_rates(lines, steps, rate)), color=TRAINING)
    axes.flat[panels - 1].set_title("learning rate")
    for axis in axes.flat[panels:]:
        axis.remove()
    for axis in axes.flat[:panels]:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    with atomic_file(folder / CURVES) as partial:
        figure.savefig(partial, dpi=120, format="png")
    pyplot.close(figure)


def draw_accuracy(axis, lines: list[dict]) -> None:
    """Masked-token accuracy on held-out text: student, teacher (a constant) and their agreement."""
    student, teacher, agreement = (series(lines, name)[1] for name in ("accuracy", "teacher_accuracy", "agreement"))
    if teacher:
        axis.axhline(teacher[-1][1], color=TEACHER, linestyle="--", label=f"teacher, {teacher[-1][1]:.1%}")
        axis.plot(*zip(*agreement), "s:", color=BEFORE, markersize=4, label="student agrees with teacher")
    if student:
        axis.plot(*zip(*student), "o-", color=HELD_OUT, markersize=4, label=f"student, {student[-1][1]:.1%}")
        mark_before(axis, student, ".1%")
    axis.set_title("accuracy on masked tokens of held-out text")
    axis.set_ylim(0, 1)
    axis.yaxis.set_major_formatter("{x:.0%}")


def mark_before(axis, points: list[tuple[int, float]], format: str) -> None:
    """Names the point of step 0."""
    step, value = points[0]
    if step == 0:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(f"before training: {value:{format}}", (0, value), color=HELD_OUT, bbox=box, **place)
