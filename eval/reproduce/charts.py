"""accuracy.png, table2.png and speed.png: the results of `reproduce` as pictures, if matplotlib is installed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy

from data.cli import note
from model.checkpoints.native import atomic_file

from ..tasks.table2 import PAPER
from ..tasks.table2_chart import NAMES, chart, value_and_error
from ..validation import VALIDATION_BLOCKS
from .variants import MLM_ONLY, RANDOM, TEACHER
from .variants import PAPER as PAPERS_LOSS

BARS = {  # fine-tuned models: label, colour
    TEACHER: ("teacher", "#4c5b70"),
    PAPERS_LOSS: ("student, distilled", "#0072b2"),
    MLM_ONLY: ("student, masked LM alone", "#e69f00"),
}
INT8, FIRST_INT8 = "student, int8", "student, distilled, int8 (first seed)"
COLOURS = {
    PAPERS_LOSS: "#0072b2",
    MLM_ONLY: "#d55e00",
    RANDOM: "#009e73",
}  # lines: safe for the colour-blind (Okabe, Ito)
OTHERS = ("#cc6677", "#332288", "#b5a642", "#117733", "#56b4e9", "#882255", "#44aa99", "#808000", "#aa4499")  # (Tol)
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))  # their number has no factor in common with OTHERS'
GREY = "#444444"
EARLY = 0.3  # share of the tokens after which all but the random start are in the upper part of the picture


def draw(results: Mapping, statistics: Mapping, folder: Path) -> None:
    """Writes those pictures for which there are results.  statistics: summary(results, folder)"""
    tasks = as_in_table2(results, statistics)
    is_demo = results["scale"]["is_demo"]
    try:
        figures = {"accuracy.png": accuracy_chart(results, statistics)} if statistics["variants"] else {}
        if tasks:
            figures["table2.png"] = chart(tasks, PAPER, is_demo, BARS)
        if timed := {task: each for task, each in tasks.items() if results["tasks"][task].get("milliseconds")}:
            figures["speed.png"] = speed_chart(results["tasks"], timed)
    except ImportError:
        note("The pictures need matplotlib: pip install matplotlib")
        return
    for name, figure in figures.items():
        with atomic_file(folder / name) as temporary:
            figure.savefig(temporary, dpi=130, format="png")


def as_in_table2(results: Mapping, statistics: Mapping) -> dict[str, dict]:
    """The results of the tasks in the form of table2.json: {task: {"baseline", model: {"runs", "over_seeds"}}}

    Without tasks that no model was fine-tuned on.
    """
    found: dict[str, dict] = {}
    for task, result in results["tasks"].items():
        if not any(result["models"].values()):
            continue
        found[task] = {"baseline": {name: {"value": value} for name, value in result.get("baseline", {}).items()}}
        for name, runs in result["models"].items():
            if name in BARS and runs:
                test = {measure: each[name] for measure, each in statistics["tasks"][task].items()}
                found[task][name] = {"runs": runs, "over_seeds": {"test": test}}
    return found


# ---- held-out accuracy -----------------------------------------------------------------------------------------


def accuracy_chart(results: Mapping, statistics: Mapping):
    """-> matplotlib's Figure: accuracy against tokens, and beside it, as its legend, the accuracy at the end."""
    from matplotlib.figure import Figure

    variants = statistics["variants"]
    styles = line_styles(list(variants))
    figure = Figure(figsize=(13, max(5.2, 1.7 + 0.36 * (len(variants) + 1))), layout="constrained", facecolor="white")
    sizes = dict(width_ratios=(1.35, 1), height_ratios=(3, 1))
    upper, end, lower = figure.subplot_mosaic([["upper", "end"], ["lower", "end"]], **sizes).values()
    for axis in (upper, lower, end):
        axis.grid(color="#e6e6e6", zorder=0)
        axis.tick_params(length=0, pad=6)
        axis.spines[["top", "right"]].set_visible(False)
    draw_curves(upper, lower, results, styles)
    draw_ends(end, results, variants, styles)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.03, hspace=0)
    figure.suptitle("Masked-token accuracy on held-out text, in percent", fontsize=13, fontweight="bold")
    return figure


def line_styles(names: Sequence[str]) -> dict[str, dict]:
    """Of each variant's line; thicker for those of the main comparison."""
    others = [name for name in names if name not in COLOURS]
    styles = {
        name: dict(color=colour, linestyle="-", linewidth=2.6) for name, colour in COLOURS.items() if name in names
    }
    for index, name in enumerate(others):
        colour, dashes = OTHERS[index % len(OTHERS)], DASHES[(index + 1) % len(DASHES)]
        styles[name] = dict(color=colour, linestyle=dashes, linewidth=1.3)
    return styles


def mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Curves of [tokens, accuracy] -> tokens, the mean in percent, the standard deviation (0 of a single curve)

    At the points of the first curve, up to the end of the shortest; the others are interpolated there.
    """
    arrays = [numpy.array(sorted(map(tuple, curve)), dtype=float).T for curve in curves]
    tokens = arrays[0][0]
    tokens = tokens[tokens <= min(array[0, -1] for array in arrays)]
    values = 100 * numpy.stack([numpy.interp(tokens, *array) for array in arrays])
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else numpy.zeros(len(tokens))
    return tokens, values.mean(axis=0), deviation


def draw_curves(upper, lower, results: Mapping, styles: Mapping[str, dict]) -> None:
    """The same lines in two parts of different scale; the upper holds all but the random start, after the beginning."""
    curves = {name: [run["curve"] for run in results["variants"][name]["runs"] if run["curve"]] for name in styles}
    means = {name: mean_curve(each) for name, each in curves.items() if each}
    runs = [run for name in means for run in results["variants"][name]["runs"]]
    on_curve = [run["teacher_on_curve"] for run in runs if run["teacher_on_curve"] is not None]
    teacher = 100 * (on_curve[0] if on_curve else results["teacher"]["accuracy"]["value"])
    last = max((tokens[-1] for tokens, *_ in means.values()), default=0)
    unit, unit_name = (1e6, "millions") if last >= 1e6 else (1e3, "thousands")
    for axis in (upper, lower):
        for name, (tokens, mean, deviation) in means.items():
            front, colour = 4 if name in COLOURS else 3, styles[name]["color"]
            axis.plot(tokens / unit, mean, label=name, zorder=front, solid_capstyle="butt", **styles[name])
            if len(curves[name]) > 1:
                band = dict(color=colour, alpha=0.25 if name in COLOURS else 0.12, linewidth=0, zorder=front - 2)
                axis.fill_between(tokens / unit, mean - deviation, mean + deviation, **band)
        axis.axhline(teacher, color="black", linestyle="--", linewidth=1.6, label=TEACHER, zorder=2)
        axis.set_xlim(0, last / unit or 1)
    place = dict(textcoords="offset points", fontsize=9, fontweight="bold")
    upper.annotate(f"teacher {teacher:.1f}", (0, teacher), (4, 4), **place)
    lines = [each for name, each in means.items() if name != RANDOM] or list(means.values())
    top = max([teacher, 0.01, *((mean + deviation).max() for _, mean, deviation in means.values())])
    early = [numpy.interp(EARLY * tokens[-1], tokens, mean) for tokens, mean, _ in lines]
    middle = max(0.1 * top, min([*early, 0.9 * teacher]))
    upper.set_ylim(middle, top + 0.1 * (top - middle))
    blocks = results["scale"]["held_out_blocks"]
    part = f"; on {VALIDATION_BLOCKS} of the {blocks:,} blocks" if blocks > VALIDATION_BLOCKS else ""
    lower.set(ylim=(0, middle), xlabel=f"tokens read, in {unit_name}{part}")
    upper.spines["bottom"].set(linestyle=":", color="#999999")
    upper.tick_params(labelbottom=False)
    bands = "; bands: ± one standard deviation" if any(len(each) > 1 for each in curves.values()) else ""
    title = f"During training{bands}; below the dotted line: another scale"
    upper.set_title(title, fontsize=10, color=GREY, loc="left")


def draw_ends(axis, results: Mapping, variants: Mapping[str, Mapping], styles: Mapping[str, dict]) -> None:
    """A row for each variant, the highest at the top: its mean, deviation and seeds at the end; and the teacher's."""
    found = {name: each["accuracy"] for name, each in variants.items()}
    ends = {name: (100 * each["mean"], 100 * (each["deviation"] or 0)) for name, each in found.items()}
    teacher = 100 * results["teacher"]["accuracy"]["value"]
    left, right = limits(ends, teacher)
    rows = sorted([*ends, TEACHER], key=lambda name: ends.get(name, (teacher,))[0])
    at_margin = dict(transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    for row, name in enumerate(rows):
        if name == TEACHER:
            text = f"{teacher:.2f}"
            axis.plot([left, teacher], [row, row], color="black", linestyle="--", linewidth=1.6, zorder=2)
            axis.plot(teacher, row, "s", color="black", markersize=7, zorder=4)
        else:
            mean, deviation = ends[name]
            text = f"{mean:.2f}" + f" ± {deviation:.2f}" * (len(found[name]["seeds"]) > 1)
            seeds = [100 * run["accuracy"] for run in results["variants"][name]["runs"]]
            draw_end(axis, row, mean, deviation, seeds, left, styles[name])
        axis.text(1.02, row, text, fontweight=weight(name), **at_margin)
    axis.set(yticks=range(len(rows)), yticklabels=rows, xlim=(left, right), ylim=(-0.6, len(rows) - 0.4))
    for label, name in zip(axis.get_yticklabels(), rows):
        label.set_fontweight(weight(name))
    axis.tick_params(axis="y", pad=9)  # room for the arrow
    if any(mean < left for mean, _ in ends.values()):
        axis.set_xlabel("the arrow: below this axis")
    several = any(len(each["seeds"]) > 1 for each in found.values())
    seeds = "; mean ± standard deviation; black dots: seeds" if several else ""
    axis.set_title(f"At the end{seeds}", fontsize=10, color=GREY, loc="left")


def weight(name: str) -> str:
    return "bold" if name in (*COLOURS, TEACHER) else "normal"


def draw_end(
    axis, row: int, mean: float, deviation: float, seeds: Sequence[float], left: float, style: Mapping
) -> None:
    """The line's style from the left to the mean; an arrow at the left edge if the mean lies beyond it."""
    colour = style["color"]
    if mean < left:
        axis.plot(left, row, "<", color=colour, markersize=9, clip_on=False, zorder=4)
        return
    axis.plot([left, mean], [row, row], zorder=2, solid_capstyle="butt", **style)
    axis.errorbar(mean, row, xerr=deviation or None, color=colour, marker="o", markersize=7, capsize=4, zorder=3)
    if len(seeds) > 1:
        axis.plot(seeds, [row] * len(seeds), "o", color="black", markersize=2.5, zorder=5)


def limits(ends: Mapping[str, tuple[float, float]], teacher: float) -> tuple[float, float]:
    """Of the axis of accuracy at the end; without the random start if it lies far below all others."""

    def span(names: Sequence[str]) -> tuple[float, float]:
        low = min([teacher, *(ends[name][0] - ends[name][1] for name in names)])
        return low, max([teacher, *(ends[name][0] + ends[name][1] for name in names)])

    low, high = span(list(ends))
    others = [name for name in ends if name != RANDOM]
    low_of_others, _ = span(others)
    if others and high - low > 3 * (high - low_of_others):
        low = low_of_others
    margin = max(0.12 * (high - low), 0.05)
    return low - margin, high + margin


# ---- speed -----------------------------------------------------------------------------------------------------


def speed_chart(results: Mapping[str, Mapping], tasks: Mapping[str, dict]):
    """-> matplotlib's Figure: of each task, the measure that the paper has against milliseconds per text.

    tasks: as_in_table2(); the student by masked LM alone is of the same size as the distilled one, and as fast.
    """
    from matplotlib.figure import Figure

    measures = {task: measure for task, measure in PAPER if task in tasks}
    figure = Figure(figsize=(max(3.3 * len(measures), 6.5), 4.4), layout="constrained", facecolor="white")
    for axis, (task, measure) in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures.items()):
        times = results[task]["milliseconds"]
        aside = 0.012 * max(times.values())  # so that two models of one speed do not hide each other
        for name, marker, shift in ((TEACHER, "s", 0), (PAPERS_LOSS, "o", -aside), (MLM_ONLY, "^", aside)):
            time = times.get(TEACHER if name == TEACHER else "student")
            if name in tasks[task] and time:
                mean, low, high = value_and_error(tasks[task][name], measure)
                label, colour = BARS[name]
                style = dict(fmt=marker, color=colour, markersize=8, capsize=3, label=label, zorder=3)
                axis.errorbar(time + shift, mean, [[low], [high]], **style)
        if measure in results[task].get("int8", {}) and INT8 in times:
            style = dict(marker="D", color="#56b4e9", markersize=8, linestyle="", label=FIRST_INT8)
            axis.plot(times[INT8], 100 * results[task]["int8"][measure][1], zorder=3, **style)
        axis.set(title=f"{task}, {NAMES.get(measure, measure)}", xlabel="milliseconds per text")
        axis.set_xlim(0, 1.15 * max(times.values()))
        axis.margins(y=0.25)
        axis.grid(color="#e6e6e6", zorder=0)
        axis.tick_params(length=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("on the test data, in percent")
    figure.suptitle("Accuracy against speed, one text at a time", fontsize=13, fontweight="bold")
    handles = {label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels())}
    order = [label for label in (*(label for label, _ in BARS.values()), FIRST_INT8) if label in handles]
    style = dict(ncols=4 if len(measures) > 2 else 2, frameon=False, fontsize=9)
    figure.legend([handles[label] for label in order], order, loc="outside lower center", **style)
    return figure
