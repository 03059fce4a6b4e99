"""table2.png: bars, error bars, baseline and the paper's figures at their heights, with title and scale."""

import sys
from pathlib import Path

import pytest

from data.tasks import TASKS
from eval.tasks.table2 import PAPER
from eval.tasks.table2_chart import BARS, BASELINE, PAPERS, chart, draw, value_and_error

MEANS = {"teacher": 0.8, "student": 0.6, "distilled": 0.7}


def tuned(measure, mean, seeds=1):
    test = {measure: {"value": mean, "low": mean - 0.03, "high": mean + 0.02}}
    deviation = 0.015 if seeds > 1 else None
    over_seeds = {"test": {measure: {"mean": mean, "deviation": deviation}}}
    return {"runs": [{"test": test}] * seeds, "over_seeds": over_seeds}


def made_up(tasks=TASKS, seeds=1, distilled=True):
    names = [name for name in MEANS if distilled or name != "distilled"]
    measures = {task: measure for task, measure in PAPER if task in tasks}
    return {
        task: {"baseline": {measure: {"value": 0.25}}} | {name: tuned(measure, MEANS[name], seeds) for name in names}
        for task, measure in measures.items()
    }


@pytest.mark.parametrize("seeds, expected", [(1, (80, 3, 2)), (3, (80, 1.5, 1.5))])
def test_error_bars_are_the_interval_of_one_seed_or_the_deviation_over_several(seeds, expected):
    assert value_and_error(tuned("f1", 0.8, seeds), "f1") == pytest.approx(expected)


def test_a_single_example_has_no_error_bar():
    one = {"f1": {"value": 1.0, "low": None, "high": None}}
    over_seeds = {"test": {"f1": {"mean": 1.0, "deviation": None}}}
    assert value_and_error({"runs": [{"test": one}], "over_seeds": over_seeds}, "f1") == (100, 0, 0)


@pytest.mark.parametrize("tasks", [TASKS, ("qa", "nli"), ("ner",)])
@pytest.mark.parametrize("distilled", [True, False])
def test_the_chart(tmp_path, tasks, distilled):
    pytest.importorskip("matplotlib")
    figure = chart(made_up(tasks, 1, distilled), PAPER, is_demo=True)
    (axis,) = figure.axes
    ours = [80, 60, 70] if distilled else [80, 60]
    papers = [figures for (task, _), figures in PAPER.items() if task in tasks]
    expected = [height for pair in papers for height in (*ours, *pair)]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(expected)
    errors = [each for each in axis.containers if hasattr(each, "has_yerr")]
    ends = [sorted(point[1] for point in each[2][0].get_segments()[0]) for each in errors]
    assert ends == [pytest.approx([height - 3, height + 2]) for height in ours] * len(tasks)
    assert [line.get_segments()[0][:, 1].tolist() for line in axis.collections if line.get_label() == BASELINE] == [
        [25.0, 25.0]
    ]
    names = [label.get_text().split("\n")[0] for label in axis.get_xticklabels()]
    assert names == [task for task in TASKS if task in tasks]
    assert axis.get_ylim() == (0, 105) and "percent" in axis.get_ylabel() and "Table 2" in figure.get_suptitle()
    assert "other models on other data" in axis.get_title() and "the demo's invented data" in axis.get_title()
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [*(BARS[name][0] for name in list(BARS)[: len(ours)]), BASELINE, *PAPERS]
    draw(made_up(tasks, 3, distilled), PAPER, tmp_path / "table2.png", False)
    assert (tmp_path / "table2.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    draw(made_up(), PAPER, Path(tmp_path, "table2.png"), True)
    assert "pip install matplotlib" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_is_missing_is_left_out():
    pytest.importorskip("matplotlib")
    results = made_up(("ner", "nli"), distilled=False)
    del results["nli"]["student"]
    for result in results.values():
        result["baseline"] = {}
    bars = {"student": ("a student", "red"), "teacher": ("a teacher", "blue")}
    figure = chart(results, PAPER, is_demo=True, bars=bars)
    expected = [60, 80, *PAPER["ner", "overlap_f1"], 80, *PAPER["nli", "macro_f1"]]
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(expected)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a student", "a teacher", *PAPERS]
