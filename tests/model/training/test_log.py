"""Lines of logged steps, metrics.jsonl and TensorBoard. The screen: test_screen.py."""

import json
import os
import sys

import pytest
import torch

from model.training import screen
from model.training.log import MetricsLogger, held_out_line, metrics_record, progress_line, truncate
from model.training.state import Diverged, TrainState

LOSSES = dict(loss=1.5, soft_label_loss=1.25, cosine_loss=0.5, mlm_loss=3.0)
RECORD = dict(step=20, **LOSSES, tokens_per_second=1234.5, learning_rate=5e-4, gradient_norm=2.0, skipped=[])
SUMS = (20.0, 5.0, 12.0, 10.0, 4.0)  # of the losses, real tokens, masked tokens


def logger(folder, state=None, tensorboard=False, enabled=True):
    return MetricsLogger(folder, 40, state or TrainState(), tensorboard, enabled)


def test_a_progress_line_has_losses_learning_rate_gradient_norm_speed_and_time_left():
    assert progress_line(RECORD, "step   20/3000", 3725.9) == (
        "step   20/3000  loss 1.5000  soft 1.2500  cos 0.5000  mlm 3.0000  lr 5.0e-04  grad norm 2.00    1,234 tok/s"
        "  ETA 01:02:05"
    )


def test_a_record_is_on_disk_before_its_line_is_printed(tmp_path, monkeypatch):
    on_disk = []
    monkeypatch.setattr(screen, "say", lambda line: on_disk.append((tmp_path / "metrics.jsonl").read_text()))
    with logger(tmp_path) as metrics:
        metrics.log(RECORD, 60.0)
    assert [json.loads(text) for text in on_disk] == [RECORD]


def test_a_progress_line_of_masked_lm_with_skipped_steps_and_a_validation():
    skipped = [{"step": 7, "first_block": 48}, {"step": 9, "first_block": 64}]
    held_out = {"loss": 2.0, "accuracy": 0.5, "pseudo_perplexity": 7.25}
    absent = dict(soft_label_loss=None, cosine_loss=None, gradient_norm=None)
    line = progress_line({**RECORD, **absent, "share_of_peak": 0.41, "skipped": skipped}, "step 20/20", 0)
    assert "soft" not in line and "grad norm none" in line and "41% of peak" in line and "skipped 7, 9" in line
    line = held_out_line(held_out, "step 20/20")
    assert line == "step 20/20  held-out loss 2.0000  masked-token accuracy 50.0%  pseudo-perplexity 7.2"


def test_a_record_has_means_over_all_tokens():
    state = TrainState(step=4, sums=SUMS, since_line=2.0, highest=9.0, skipped=(3,))
    record = metrics_record(state, torch.tensor(1.5), 0.1, (0.5, 0.3, 0.2), blocks_per_step=16, peak=20.0)
    assert record.pop("loss") == pytest.approx(0.5 * 2 + 0.3 * 0.5 + 0.2 * 3)
    expected = dict(soft_label_loss=2.0, cosine_loss=0.5, mlm_loss=3.0, highest_loss=9.0, step=4)
    expected |= dict(skipped=[{"step": 3, "first_block": 32}], gradient_norm=1.5, learning_rate=0.1)
    assert record == expected | dict(tokens=10, tokens_per_second=5.0, share_of_peak=0.25)


def test_a_record_of_masked_lm_alone_and_one_that_is_not_finite():
    state = TrainState(step=4, sums=SUMS)
    record = metrics_record(state, torch.tensor(float("inf")), 0.1, (0.0, 0.0, 1.0), 16, None)
    assert record["loss"] == record["mlm_loss"] == 3.0 and record["soft_label_loss"] is record["cosine_loss"] is None
    assert record["gradient_norm"] is record["share_of_peak"] is None
    with pytest.raises(Diverged, match="The loss is nan at step 4. Try a smaller --lr"):
        metrics_record(TrainState(step=4, sums=(float("nan"), *SUMS[1:])), torch.tensor(1.0), 0.1, (1, 1, 1), 16, None)


def test_metrics_are_truncated_to_the_checkpoint_and_continued(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"st')
    with logger(tmp_path, TrainState(step=10, metrics_bytes=13)) as metrics:
        length = metrics.log(RECORD, 0.0)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 10}, RECORD]
    assert length == path.stat().st_size
    with path.open("ab") as file:
        file.write(b'{"st')
    truncate(path, length + 100)
    assert path.stat().st_size == length and "is shorter than at the last checkpoint" in capsys.readouterr().err


def test_other_ranks_write_nothing(tmp_path):
    with logger(tmp_path, enabled=False) as metrics:
        assert metrics.log(RECORD, 0.0) == 0
    assert not list(tmp_path.iterdir())


def test_step_0_has_held_out_figures_alone(tmp_path, capsys):
    held_out = {"loss": 2.0, "accuracy": 0.5, "pseudo_perplexity": 7.25, "teacher_accuracy": 0.7, "agreement": 0.6}
    with logger(tmp_path) as metrics:
        length = metrics.log({"step": 0, "held_out": held_out})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "held_out": held_out}
    assert length == (tmp_path / "metrics.jsonl").stat().st_size
    assert capsys.readouterr().out.startswith("step  0/40  held-out loss 2.0000  masked-token accuracy 50.0% (teacher")


def test_without_tensorboard_a_hint(tmp_path, monkeypatch, capsys):
    for name in list(sys.modules):
        if name.startswith(("tensorboard", "torch.utils.tensorboard")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with logger(tmp_path, tensorboard=True) as metrics:
        metrics.log({**RECORD, "share_of_peak": None}, 0.0)
    output = capsys.readouterr()
    assert "step 20/40" in output.out and "pip install tensorboard" in output.err


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    with logger(tmp_path, tensorboard=True) as metrics:
        metrics.log({**RECORD, "held_out": {"loss": 1.0, "accuracy": 0.5, "pseudo_perplexity": 2.0}}, 0.0)
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("kind", [os.symlink, os.link])
def test_the_metrics_of_another_run_are_not_written_through_a_link(tmp_path, kind):
    """As `cp -al` makes of a run's folder."""
    other, out = tmp_path / "other.jsonl", tmp_path / "out"
    out.mkdir()
    other.write_bytes(b"1234\n5678\n")
    kind(other, out / "metrics.jsonl")
    with logger(out, TrainState(metrics_bytes=5)) as metrics:
        metrics.log(RECORD, 60.0)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert other.read_bytes() == b"1234\n5678\n" and lines[0] == "1234" and json.loads(lines[1]) == RECORD
