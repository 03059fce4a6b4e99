"""The pictures: lines, bands, rows and points at their values, for few and many variants and seeds."""

import sys

import pytest

from eval.reproduce.charts import accuracy_chart, as_in_table2, draw, line_styles, mean_curve, speed_chart
from eval.reproduce.summary import summary
from tests.eval.reproduce.shared import VARIANTS, made_up

NAMES = tuple(VARIANTS)


def test_the_mean_of_curves():
    tokens, mean, deviation = mean_curve([[[0, 0.2], [100, 0.4], [200, 0.5]], [[150, 0.5], [0, 0.3]]])
    assert tokens.tolist() == [0, 100]  # where both are known
    assert mean.tolist() == pytest.approx([25, (40 + 30 + 20 * 2 / 3) / 2])
    assert deviation.tolist() == pytest.approx([10 / 2**0.5, (20 * 2 / 3 - 10) / 2**0.5])
    assert mean_curve([[[0, 0.2]]])[2].tolist() == [0]


def test_no_two_lines_look_alike():
    styles = line_styles([*NAMES, *(f"further {i}" for i in range(10))])
    assert len({(style["color"], str(style["linestyle"])) for style in styles.values()}) == len(styles)


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("names", [NAMES, NAMES[:3], NAMES[1:2]])
def test_accuracy(tmp_path, seeds, names):
    pytest.importorskip("matplotlib")
    results = made_up(tmp_path, seeds, names, tasks=())
    statistics = summary(results, tmp_path)
    figure = accuracy_chart(results, statistics)
    training, end, lower = figure.axes
    lines, below = ({line.get_label(): line for line in axis.lines} for axis in (training, lower))
    assert training.get_ylim()[0] == lower.get_ylim()[1] > 0 == lower.get_ylim()[0] and training.get_ylim()[1] > 75
    assert all(
        below[name].get_ydata().tolist() == line.get_ydata().tolist()
        for name, line in lines.items()
        if name != "teacher"
    )
    assert set(lines) == {*names, "teacher"} and set(lines["teacher"].get_ydata()) == {
        74
    }  # on the blocks of the curves
    assert len(training.collections) == (len(names) if seeds > 1 else 0)  # the bands
    for name in names:
        curves = [run["curve"] for run in results["variants"][name]["runs"]]
        assert lines[name].get_xdata() == pytest.approx([tokens / 1e3 for tokens, _ in curves[0]])
        last = 100 * sum(curve[-1][1] for curve in curves) / seeds
        assert lines[name].get_ydata()[-1] == pytest.approx(last)
        assert (lines[name].get_linewidth() > 2) == (name in ("paper", "mlm-only", "random"))
    assert lower.get_xlabel() == "tokens read, in thousands" and lower.get_xlim() == (0, 500)
    rows = [label.get_text() for label in end.get_yticklabels()]
    figures = [text.get_text() for text in end.texts]
    means = {name: 100 * each["accuracy"]["mean"] for name, each in statistics["variants"].items()} | {"teacher": 75}
    assert rows == sorted(means, key=means.get)
    assert [float(text.split(" ± ")[0]) for text in figures] == pytest.approx([means[name] for name in rows], abs=0.006)
    assert sum("±" in text for text in figures) == (len(names) if seeds > 1 else 0)
    left, right = end.get_xlim()
    inside = [mean for name, mean in means.items() if name != "random"]
    assert left < min(inside) and max(inside) < right
    arrows = [line for line in end.lines if line.get_marker() == "<"]
    assert len(arrows) == ("random" in names) == ("arrow" in end.get_xlabel())
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in (*end.texts, *end.get_yticklabels())]
    assert not any(box.overlaps(other) for i, box in enumerate(boxes) for other in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_curves_on_a_part_of_the_held_out_blocks(tmp_path):
    """So is the teacher's line; of the random start alone no accuracy of the teacher is known but that over all."""
    pytest.importorskip("matplotlib")
    results = made_up(tmp_path, 1, NAMES[:1], tasks=())
    results["scale"]["held_out_blocks"] = 8192
    lower = accuracy_chart(results, summary(results, tmp_path)).axes[2]
    assert lower.get_xlabel() == "tokens read, in thousands; on 256 of the 8,192 blocks"
    results = made_up(tmp_path, 1, ["random"], tasks=())
    upper, *_ = accuracy_chart(results, summary(results, tmp_path)).axes
    assert set(upper.lines[-1].get_ydata()) == {75}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("curve", [[], [[0, 0.0]], [[0, 0.9], [1000, 0.9]]])
def test_runs_of_which_little_is_known(tmp_path, curve):
    """No curve, only its beginning, or students that are better than the teacher from the first step on."""
    pytest.importorskip("matplotlib")
    results = made_up(tmp_path, 2, NAMES[:2], tasks=())
    for run in [run for variant in results["variants"].values() for run in variant["runs"]]:
        run["curve"] = curve
    upper, _, lower = accuracy_chart(results, summary(results, tmp_path)).axes
    assert len(upper.lines) == (3 if curve else 1)
    assert 0 == lower.get_ylim()[0] < lower.get_ylim()[1] == upper.get_ylim()[0] < 75 < upper.get_ylim()[1]


@pytest.mark.parametrize("tasks", [("sentiment", "ner", "nli", "qa"), ("qa",)])
def test_speed(tmp_path, tasks):
    pytest.importorskip("matplotlib")
    results = made_up(tmp_path, variants=(), tasks=tasks)
    figure = speed_chart(results["tasks"], as_in_table2(results, summary(results, tmp_path)))
    assert [axis.get_title().split(",")[0] for axis in figure.axes] == list(tasks)
    expected = [(10, 81), (4 - 0.12, 71), (4 + 0.12, 65), (2, 70.3)]
    figure.draw_without_rendering()
    for axis in figure.axes:
        points = [line for line in axis.lines if line.get_marker() in ("s", "o", "^", "D")]
        found = [coordinate for line in points for coordinate in (*line.get_xdata(), *line.get_ydata())]
        assert found == pytest.approx([coordinate for point in expected for coordinate in point])
        assert axis.get_xlim() == pytest.approx((0, 11.5)) and axis.get_ylim()[0] < 65 < 82 < axis.get_ylim()[1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][::3] == ["teacher", "student, distilled, int8 (first seed)"]
    assert legend.get_window_extent().x0 >= 0 and legend.get_window_extent().x1 <= figure.bbox.x1


def test_table_2_without_a_model_on_one_of_the_tasks(tmp_path):
    results = made_up(tmp_path, variants=(), tasks=("ner", "nli", "qa"))
    del results["tasks"]["qa"]["models"]["mlm-only"]
    results["tasks"]["nli"]["models"] = {}
    del results["tasks"]["qa"]["baseline"]
    tasks = as_in_table2(results, summary(results, tmp_path))
    assert {task: [name for name in result if name != "baseline"] for task, result in tasks.items()} == {
        "ner": ["teacher", "paper", "mlm-only"],
        "qa": ["teacher", "paper"],
    }
    assert tasks["qa"]["baseline"] == {}
    assert tasks["qa"]["paper"]["over_seeds"]["test"]["f1"]["mean"] == pytest.approx(0.71)


@pytest.mark.parametrize(
    "arguments, written",
    [
        (dict(seeds=2, variants=NAMES[:4]), {"accuracy.png", "table2.png", "speed.png"}),
        (dict(seeds=1, variants=NAMES[:2], tasks=()), {"accuracy.png"}),
        (dict(variants=(), tasks=("ner",)), {"table2.png", "speed.png"}),
        (dict(variants=(), tasks=()), set()),
    ],
)
def test_the_files(tmp_path, arguments, written):
    pytest.importorskip("matplotlib")
    results = made_up(tmp_path, **arguments)
    draw(results, summary(results, tmp_path), tmp_path)
    found = {path.name: path.read_bytes()[:4] for path in tmp_path.glob("*.*")}
    assert found == dict.fromkeys(written, b"\x89PNG")


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    results = made_up(tmp_path, variants=NAMES[:1])
    draw(results, summary(results, tmp_path), tmp_path)
    assert "pip install matplotlib" in capsys.readouterr().err and not list(tmp_path.glob("*.png"))
