"""table2.png: the measures that the paper's Table 2 has, beside the paper's figures and a baseline without a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.cli import note
from model.checkpoints.native import atomic_file

BARS = {  # this project's models: label, colour
    "teacher": ("teacher", "#4c5b70"),
    "student": ("student", "#2a7fbf"),
    "distilled": ("student, task distilled", "#7cc0e8"),
}
PAPERS = {"CamemBERT, the paper": "#a9a9a9", "DistilCamemBERT, the paper": "#dcdcdc"}
NAMES = {"macro_f1": "macro F1", "overlap_f1": "F1 of entity words", "f1": "F1 of answer words"}
BASELINE, RED = "baseline without a model", "#c0392b"
WIDTH, GAP = 0.14, 0.12  # of a bar; between this project's bars and the paper's
DEMO = "the demo's invented data"


def draw(
    results: Mapping[str, dict], paper: Mapping[tuple[str, str], Sequence[float]], path: Path, is_demo: bool
) -> None:
    """Writes the chart, if matplotlib is installed.  The arguments are those of chart()."""
    try:
        figure = chart(results, paper, is_demo)
    except ImportError:
        note("table2.png needs matplotlib: pip install matplotlib")
        return
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def chart(
    results: Mapping[str, dict],
    paper: Mapping[tuple[str, str], Sequence[float]],
    is_demo: bool,
    bars: Mapping[str, tuple[str, str]] = BARS,
):
    """-> matplotlib's Figure

    results: of each task, as in table2.json; paper: {(task, measure): CamemBERT's and DistilCamemBERT's percent}, which
    chooses the measure of each task: the one that the paper has. bars: {model: its label and colour}
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MultipleLocator

    measures = {task: measure for task, measure in paper if task in results}
    shown = [name for name in bars if any(name in result for result in results.values())]
    figure = Figure(figsize=(max(1.6 + 2.3 * len(results), 9), 5.4), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for place, (task, measure) in enumerate(measures.items()):
        left = place - (WIDTH * (len(shown) + len(PAPERS)) + GAP) / 2
        for index, name in enumerate(shown):
            if name not in results[task]:
                continue
            mean, low, high = value_and_error(results[task][name], measure)
            at, (label, colour) = left + (index + 0.5) * WIDTH, bars[name]
            axis.bar(at, mean, 0.92 * WIDTH, color=colour, label=label, zorder=2)
            axis.errorbar(at, mean, [[low], [high]], color="black", capsize=3, linewidth=1, zorder=3)
            write(axis, at, mean + high, f"{mean:.1f}")
        right = left + len(shown) * WIDTH
        if measure in results[task]["baseline"]:
            baseline = 100 * results[task]["baseline"][measure]["value"]
            line = dict(linestyles="--", label=BASELINE if not place else None, zorder=4, clip_on=False)
            axis.hlines(baseline, left, right, RED, **line)
            axis.text(right, baseline + 1, f"{baseline:.1f}", color=RED, fontsize=7, zorder=5)
        for index, (label, colour) in enumerate(PAPERS.items()):
            at, value = right + GAP + (index + 0.5) * WIDTH, paper[task, measure][index]
            style = dict(color=colour, hatch="///", edgecolor="white", linewidth=0, zorder=2)
            axis.bar(at, value, 0.92 * WIDTH, label=label if not place else None, **style)
            write(axis, at, value, f"{value:.2f}")
    names = [f"{task}\n{NAMES.get(measure, measure)}" for task, measure in measures.items()]
    axis.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.6, len(names) - 0.4))
    axis.set(ylabel="F1 on the test data, in percent", ylim=(0, 105))
    axis.yaxis.set_major_locator(MultipleLocator(20))
    axis.grid(axis="y", color="#e6e6e6", zorder=0)
    axis.tick_params(length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle("Table 2: teacher and student fine-tuned on each task", fontsize=13, fontweight="bold")
    data = DEMO if is_demo else "the data given"
    axis.set_title(
        f"Solid bars: this project on {data}; error bars: {what_errors_are(results, shown)}.\n"
        "Hatched bars: the paper's figures, of other models on other data; it does not say how its F1 is averaged.\n"
        "Compare teacher with student within each group, not the groups with one another.",
        fontsize=9,
        color="#444444",
    )
    handles = dict(zip(*reversed(axis.get_legend_handles_labels())))
    order = [label for label in (*(bars[name][0] for name in shown), BASELINE, *PAPERS) if label in handles]
    style = dict(ncols=3, frameon=False, fontsize=9)
    figure.legend([handles[label] for label in order], order, loc="outside lower center", **style)
    return figure


def write(axis, at: float, top: float, value: str) -> None:
    """The value above a bar and its error bar."""
    axis.text(at, top + 1, value, ha="center", va="bottom", fontsize=7.5, zorder=5)


def value_and_error(tuned: dict, measure: str) -> tuple[float, float, float]:
    """-> mean over the seeds, and the lengths of the error bar below and above it, in percent

    The standard deviation over the seeds; with a single seed, the 95 % interval over the test examples.
    """
    over_seeds = tuned["over_seeds"]["test"][measure]
    mean, deviation = over_seeds["mean"], over_seeds["deviation"]
    if deviation is not None:
        return 100 * mean, 100 * deviation, 100 * deviation
    metric = tuned["runs"][0]["test"][measure]
    low, high = (mean if metric[name] is None else metric[name] for name in ("low", "high"))
    return 100 * mean, 100 * (mean - low), 100 * (high - mean)


def what_errors_are(results: Mapping[str, dict], shown: Sequence[str]) -> str:
    seeds = {len(result[name]["runs"]) for result in results.values() for name in shown if name in result}
    several = "± one standard deviation over the seeds"
    return "95 % intervals over the test examples (one seed)" if seeds == {1} else several
