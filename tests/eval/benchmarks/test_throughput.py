"""The measuring command: that it measures what it says. What it finds is in eval/LOG.md."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eval.benchmarks import throughput
from eval.benchmarks.distilbert_step import baseline_loss, baseline_model
from losses import distillation_loss
from model import EncoderConfig, MaskedLM
from tests.helpers import REPOSITORY, run_command

OPTIONS = throughput.Options(small=True, batch_size=2, block_size=16, compile=False)


def test_the_whole_command_on_tiny_models(monkeypatch, tmp_path):
    monkeypatch.setattr(throughput, "LOG", tmp_path / "LOG.md")
    sizes = "--batch-size 2 --block-size 16 --tokens 64 --memory-tokens 64 --repetitions 2"
    throughput.main(f"--small {sizes} --precision fp32 --no-compile --log".split())
    log = (tmp_path / "LOG.md").read_text(encoding="utf-8")
    for words in ("the peer's step", "this project's step", "loss alone, fp32", "extra memory", "ESTIMATE",
                  "18 days on one Titan RTX", f"torch {torch.__version__}", "threads"):  # fmt: skip
        assert words in log
    assert len(re.findall(r"\d\.\d\d ×", log)) >= 5


def test_what_is_missing_is_said(monkeypatch, capsys):
    """A row whose package is not there is left out with a note; the others are measured."""
    job = throughput.Job("the peer's step", needs_a_package, "fp32")
    product = throughput.Job("product", throughput.product, "fp32", (8, 8, 8))
    rows = throughput.measure([job, product], OPTIONS)
    assert [row.name for row in rows] == ["product"] and len(rows[0].seconds) == OPTIONS.repetitions
    assert "note: no row for the peer's step: unheard_of is missing." in capsys.readouterr().out


def needs_a_package(options, runtime):
    import unheard_of  # noqa: F401


def test_memory_is_seen():
    """A job that holds 200 MB for a moment shows them, and no more than a little else."""
    (row,) = throughput.measure([throughput.Job("held", holds, "fp32")], OPTIONS)
    assert 190e6 < row.extra < 260e6 < row.peak


def holds(options, runtime):
    return lambda: torch.ones(50_000_000).sum()


def test_the_arithmetic_is_that_of_a_profiler():
    """Against PyTorch's own count of what the products of a step multiply, forward and backward."""
    student_config, teacher_config = EncoderConfig(2, 64, 4, 128, 501), EncoderConfig(3, 48, 4, 96, 501)
    input_ids = torch.randint(5, 501, (4, 32))
    with FlopCounterMode(display=False) as counter:
        MaskedLM(student_config).train()(input_ids).sum().backward()
        with torch.no_grad():
            MaskedLM(teacher_config).eval()(input_ids)
    expected = counter.get_total_flops() / input_ids.numel()
    # attention's backward computes its scores again, and the first layer's input needs no gradient
    assert throughput.arithmetic(student_config, teacher_config, 32) == pytest.approx(expected, rel=0.06)


def test_the_issue_s_figure_of_arithmetic():
    """0.62 billion operations a token; here with the head's own layer and attention."""
    sizes = EncoderConfig.distilcamembert(), EncoderConfig.camembert()
    assert throughput.arithmetic(*sizes, 128) == pytest.approx(0.62e9, rel=0.04)


def test_the_peer_computes_the_same_loss():
    """With our weights in its models, its loss is equation (13) with its temperature and direction."""
    config = EncoderConfig(1, 64, 2, 128, 1005, dropout=0.0)
    student, teacher = baseline_model(config).eval(), baseline_model(config).eval()
    batch = throughput.random_batch(OPTIONS, config.vocab_size)
    run = throughput.run_options(OPTIONS)
    loss = baseline_loss(student, teacher, batch, run)
    given = dict(input_ids=batch.input_ids, attention_mask=batch.real, output_hidden_states=True)
    ours, theirs = student(**given), teacher(**given)
    expected = distillation_loss(
        ours.logits, theirs.logits, ours.hidden_states[-1], theirs.hidden_states[-1], batch.labels, batch.real,
        direction=run.direction, temperature=run.temperature,
    )  # fmt: skip
    assert loss.item() == pytest.approx(expected.total().item(), rel=1e-5)


@pytest.mark.parametrize("arguments", [[], ["compare"], ["throughput", "--tokens", "0"]])
def test_a_wrong_command_is_a_sentence(arguments):
    result = run_command("-m eval", *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_help():
    assert "throughput" in run_command("-m eval", "--help").stdout
    result = run_command("-m eval", "throughput", "--help")
    assert result.returncode == 0 and "--memory-tokens" in result.stdout
    assert (REPOSITORY / "eval" / "LOG.md").exists()
