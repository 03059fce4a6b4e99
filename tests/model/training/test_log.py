"""What a person sees of a run."""

import json
import sys

import pytest
import torch

from data import DataError
from model.training.log import MetricsLogger, draw_curves, duration, metrics_record, progress_line, truncate
from model.training.state import TrainState
from train import Options

RECORD = dict(step=20, loss=1.5, soft_label_loss=1.25, cosine_loss=0.5, mlm_loss=3.0, tokens_per_second=1234.5,
              learning_rate=5e-4, gradient_norm=2.0, skipped=[])  # fmt: skip


def test_the_line_has_the_losses_the_rate_the_speed_and_the_time_left():
    assert progress_line(RECORD, 3000, 3725.9) == (
        "step   20/3000  loss 1.5000  soft 1.2500  cos 0.5000  mlm 3.0000  lr 5.0e-04  gradient 2.00  1,234 tokens/s"
        "  01:02:05 left"
    )


def test_what_is_not_there_is_left_out_and_what_went_wrong_is_shown():
    record = {**RECORD, "soft_label_loss": None, "cosine_loss": None, "gradient_norm": None, "share_of_peak": 0.41,
              "skipped": [{"step": 7, "first_block": 48}, {"step": 9, "first_block": 64}],
              "held_out": {"loss": 2.0, "accuracy": 0.5, "pseudo_perplexity": 7.25}}  # fmt: skip
    line = progress_line(record, 20, 0)
    assert "soft" not in line and "gradient none" in line and "41% of peak" in line and "skipped 7, 9" in line
    assert "held out: loss 2.0000, masked tokens right 50.0%, pseudo-perplexity 7.2" in line


def test_days_are_shown():
    assert duration(19 * 86400 + 3 * 3600 + 4 * 60 + 5) == "19 d 03:04:05"


def test_a_step_is_described_by_means_over_all_tokens():
    account = TrainState(step=4, sums=(20.0, 5.0, 12.0, 10.0, 4.0), since_line=2.0, highest=9.0, skipped=(3,))
    record = metrics_record(account, torch.tensor(1.5), 0.1, (0.5, 0.3, 0.2), Options(batch_size=8, accumulate=2), 20.0)
    assert (record["soft_label_loss"], record["cosine_loss"], record["mlm_loss"]) == (2.0, 0.5, 3.0)
    assert record["loss"] == pytest.approx(0.5 * 2 + 0.3 * 0.5 + 0.2 * 3)
    assert record["tokens"] == 10 and record["tokens_per_second"] == 5.0 and record["share_of_peak"] == 0.25
    assert record["skipped"] == [{"step": 3, "first_block": 32}] and record["highest_loss"] == 9.0


def test_metrics_are_cut_back_to_the_checkpoint_and_gone_on_with(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n{"st')
    with MetricsLogger(tmp_path, Options(steps=30), TrainState(step=10, metrics_bytes=13), True) as screen:
        length = screen.show(RECORD, 0.0)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20] and lines[1]["loss"] == 1.5
    assert length == (tmp_path / "metrics.jsonl").stat().st_size
    with pytest.raises(DataError, match="is shorter than when the run stopped"):
        truncate(tmp_path / "metrics.jsonl", length + 1)


def test_other_processes_write_nothing(tmp_path):
    with MetricsLogger(tmp_path, Options(steps=30), TrainState(), False) as screen:
        assert screen.show(RECORD, 0.0) == 0
    assert not list(tmp_path.iterdir())


def test_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with MetricsLogger(tmp_path, Options(steps=40), TrainState(), True) as screen:
        screen.show(RECORD, 0.0)
        assert screen.bar.n == 20
    seen = capsys.readouterr()
    assert "step 20/40" in seen.out and "20/40" in seen.err


@pytest.mark.parametrize("package", ["tqdm", "tensorboard", "matplotlib"])
def test_a_package_that_is_missing_is_a_hint_at_most(tmp_path, monkeypatch, capsys, package):
    for name in list(sys.modules):
        if name.partition(".")[0] == package or name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: package == "tqdm")
    with MetricsLogger(tmp_path, Options(steps=40, tensorboard=package == "tensorboard"), TrainState(), True) as screen:
        screen.show({**RECORD, "share_of_peak": None}, 0.0)
        assert screen.bar is None and screen.board is None
    if package == "matplotlib":
        draw_curves(tmp_path)
    seen = capsys.readouterr()
    assert "step 20/40" in seen.out
    assert (f"pip install {package}" in seen.err) == (package != "tqdm")


def test_curves_are_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    held_out = {"loss": 1.0, "mlm_loss": 2.0, "accuracy": 0.5, "teacher_accuracy": 0.7, "agreement": 0.6}
    lines = [{**RECORD, "step": step} for step in (10, 20)] + [{**RECORD, "step": 30, "held_out": held_out}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_curves_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    with MetricsLogger(tmp_path, Options(steps=40, tensorboard=True), TrainState(), True) as screen:
        screen.show({**RECORD, "held_out": {"loss": 1.0, "accuracy": 0.5, "pseudo_perplexity": 2.0}}, 0.0)
    assert list((tmp_path / "tensorboard").iterdir())
