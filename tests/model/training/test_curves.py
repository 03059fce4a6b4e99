"""curves.png: what it draws, and that it is there completely or not at all."""

import json
import sys

import pytest

from model.training.curves import draw_curves, learning_rates, read_lines, series

HELD_OUT = dict(loss=2.0, mlm_loss=4.0, accuracy=0.25, teacher_accuracy=0.7, agreement=0.2, teacher_mlm_loss=1.5)
LOSSES = dict(loss=1.5, soft_label_loss=1.25, cosine_loss=0.5, mlm_loss=3.0)


def lines_of(**changed):
    lines = [{"step": step, "learning_rate": 0.1 * step, **LOSSES, **changed} for step in (10, 20, 30)]
    lines[-1]["held_out"] = HELD_OUT | {"loss": 1.0, "mlm_loss": 2.0, "accuracy": 0.6, "agreement": 0.65}
    return [{"step": 0, "held_out": HELD_OUT}, *lines]


def draw(folder, monkeypatch, lines, dropout=0.1):
    """-> the panels by title, and the texts in each."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    draw_curves(folder, 30, lambda step: 0.1 * step, dropout)
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG") and not list(folder.glob(".*"))
    axes = {axis.get_title(): axis for axis in figures[0].axes}
    legends = {title: axis.get_legend() for title, axis in axes.items() if axis.get_legend()}
    return axes, {title: [text.get_text() for text in legend.texts] for title, legend in legends.items()}


def test_a_curve_on_held_out_text_begins_before_the_first_step():
    training, held_out = series(lines_of(), "loss")
    assert training == [(10, 1.5), (20, 1.5), (30, 1.5)] and held_out == [(0, 2.0), (30, 1.0)]
    assert series(lines_of(soft_label_loss=None), "soft_label_loss") == ([], [])


def test_a_damaged_line_costs_its_point_only(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\n{"step"\n[2]\n{"st\xffep": 3}\n{"step": "4"}\n{"step": 5}\n'
    )
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 5}]


def test_an_extended_run_had_another_schedule_before():
    lines = [{"step": step, "learning_rate": rate} for step, rate in ((5, 0.5), (10, 0.0), (15, 1.5), (20, 2.0))]
    found = learning_rates([{"step": 0}, *lines], 20, lambda step: step / 10)
    assert found == [(5, 0.5), (10, 0.0), *((step, step / 10) for step in range(11, 21))]
    assert len(learning_rates([], 10**6, float)) == 2000


def test_names_before_teacher_and_the_learning_rate_of_every_step(tmp_path, monkeypatch):
    axes, names = draw(tmp_path, monkeypatch, lines_of())
    assert len(axes) == 6
    loss = names["masked-LM loss, equation (12)"]
    both = ["training text, with dropout 0.1", "held-out text, without dropout"]
    assert loss == [*both, "teacher, held-out text"] and names["loss, equation (13)"] == both
    assert [text.get_text() for text in axes["loss, equation (13)"].texts] == ["before training: 2"]
    accuracy = "accuracy on masked tokens of held-out text"
    assert names[accuracy] == ["teacher, 70.0%", "student agrees with teacher", "student, 60.0%"]
    assert [text.get_text() for text in axes[accuracy].texts] == ["before training: 25.0%"]
    (rates,) = axes["learning rate"].lines
    assert list(rates.get_xdata()) == list(range(1, 31)) and rates.get_ydata()[6] == pytest.approx(0.7)


def test_masked_lm_alone_has_three_panels(tmp_path, monkeypatch):
    lines = lines_of(soft_label_loss=None, cosine_loss=None)
    for line in (lines[0], lines[-1]):
        line["held_out"] = {name: line["held_out"][name] for name in ("loss", "mlm_loss", "accuracy")}
    axes, names = draw(tmp_path, monkeypatch, lines, dropout=0.0)
    assert len(axes) == 3 and names["masked-LM loss, equation (12)"] == ["training text", "held-out text"]


def test_terms_beyond_the_paper_have_panels(tmp_path, monkeypatch):
    axes, names = draw(tmp_path, monkeypatch, lines_of(relation_loss=1.1))
    assert len(axes) == 7 and "loss, equation (13); in training with terms beyond it" in axes
    assert names["attention-relation loss, beyond the paper"] == ["training text, with dropout 0.1"]


def test_without_matplotlib_a_hint(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw_curves(tmp_path, 30, lambda step: 0.1, 0.1)
    assert "pip install matplotlib" in capsys.readouterr().err and not list(tmp_path.iterdir())
