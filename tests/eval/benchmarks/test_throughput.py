"""The training benchmark: what it measures and prints. Its results are in eval/LOG.md."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.masking import CHOSEN
from eval.benchmarks import harness, throughput
from eval.benchmarks.distilbert_step import baseline_loss, baseline_model, baseline_step
from losses import distillation_loss
from model import EncoderConfig, MaskedLM
from model.training.device import Runtime, training_flops
from tests.helpers import REPOSITORY, run_command

OPTIONS = throughput.Options(small=True, batch_size=2, block_size=16, compile=False, device="cpu")


def test_the_whole_command_on_tiny_models(monkeypatch, tmp_path):
    monkeypatch.setattr(throughput, "LOG", tmp_path / "LOG.md")
    sizes = "--batch-size 2 --block-size 16 --tokens 64 --memory-tokens 64 --repetitions 2"
    throughput.main(f"--small {sizes} --precision fp32 --no-compile --log".split())
    log = (tmp_path / "LOG.md").read_text(encoding="utf-8")
    for words in ("DistilBERT script", "this project", "loss alone, fp32", "extra memory", "Estimate", "threads"):
        assert words in log
    assert "model card says 18 days on one Titan RTX" in log and f"torch {torch.__version__}" in log
    assert len(re.findall(r"\d\.\d\d ×", log)) >= 5


def test_a_row_without_its_package_is_skipped(monkeypatch, capsys):
    job = throughput.Job("DistilBERT script", needs_a_package, "fp32")
    product = throughput.Job("product", throughput.matrix_product, "fp32", (8, 8, 8))
    rows = throughput.measure([job, product], OPTIONS)
    assert [row.name for row in rows] == ["product"] and len(rows[0].seconds) == OPTIONS.repetitions
    assert "note: skipped DistilBERT script: unheard_of is not installed." in capsys.readouterr().out


def needs_a_package(options, runtime):
    import unheard_of  # noqa: F401


def test_the_report_names_the_machine(monkeypatch):
    monkeypatch.setattr(harness, "processor", lambda: "Some CPU (i8mm)")
    assert harness.heading("throughput", OPTIONS, [])[1].startswith("Some CPU (i8mm), ")


def test_peak_memory():
    (row,) = throughput.measure([throughput.Job("200 MB", allocates_200_mb, "fp32")], OPTIONS)
    assert 190e6 < row.extra < 260e6 < row.peak


def allocates_200_mb(options, runtime):
    """For a moment, and little else."""
    return lambda: torch.ones(50_000_000).sum()


def test_flops_against_pytorchs_counter():
    """Of the matrix products of a step, forward and backward."""
    student_config, teacher_config = EncoderConfig(2, 64, 4, 128, 501), EncoderConfig(3, 48, 4, 96, 501)
    input_ids = torch.randint(5, 501, (4, 32))
    with FlopCounterMode(display=False) as counter:
        MaskedLM(student_config).train()(input_ids).sum().backward()
        with torch.no_grad():
            MaskedLM(teacher_config).eval()(input_ids)
    expected = counter.get_total_flops() / input_ids.numel()
    # attention's backward pass computes its scores again, and the first layer's input needs no gradient
    assert training_flops(student_config, teacher_config, 32, CHOSEN) == pytest.approx(expected, rel=0.06)


def test_flops_per_token_at_base_size():
    """0.62 GFLOP per token without attention and the LM head's own layer."""
    sizes = EncoderConfig.distilcamembert(), EncoderConfig.camembert()
    assert training_flops(*sizes, 128, CHOSEN) == pytest.approx(0.62e9, rel=0.04)


def test_the_baseline_computes_the_same_loss():
    """Equation (13) with the script's temperature and direction."""
    config = EncoderConfig(1, 64, 2, 128, 1005, dropout=0.0)
    student, teacher = baseline_model(config).eval(), baseline_model(config).eval()
    batch, run = throughput.random_batch(OPTIONS, config.vocab_size), throughput.training_options(config.hidden_size)
    loss = baseline_loss(student, teacher, batch, run)
    inputs = dict(input_ids=batch.input_ids, attention_mask=batch.real, output_hidden_states=True)
    one, other = student(**inputs), teacher(**inputs)
    tensors = (one.logits, other.logits, one.hidden_states[-1], other.hidden_states[-1], batch.labels, batch.real)
    expected = distillation_loss(*tensors, direction=run.direction, temperature=run.temperature)
    assert loss.item() == pytest.approx(expected.total().item(), rel=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_baseline_in_fp16_scales_its_loss(monkeypatch, compiled):
    """It clips the unscaled gradient, steps through the scaler, and compiles both models if that is wanted."""
    norms, scales, compiles, clip = [], [], [], torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: norms.append(clip(*given).item()))
    monkeypatch.setattr(torch.amp.GradScaler, "update", lambda scaler: scales.append(scaler.get_scale()))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda model, **settings: compiles.append(model))
    config = EncoderConfig(1, 64, 2, 128, 1005, dropout=0.0)
    for precision in ("fp32", "fp16"):
        torch.manual_seed(0)
        runtime = Runtime(torch.device("cpu"), precision, compiled)
        step = baseline_step(config, config, throughput.training_options(config.hidden_size), runtime)
        step(throughput.random_batch(OPTIONS, config.vocab_size))
    assert norms[1] == pytest.approx(norms[0], rel=0.02) and scales == [1.0, 2.0**16]
    assert len(compiles) == (4 if compiled else 0)


@pytest.mark.parametrize("arguments", [[], ["compare"], ["throughput", "--tokens", "0"]])
def test_errors_for_commands(arguments):
    result = run_command("-m eval", *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr


def test_help():
    assert "throughput" in run_command("-m eval", "--help").stdout
    result = run_command("-m eval", "throughput", "--help")
    assert result.returncode == 0 and "--memory-tokens" in result.stdout
    assert throughput.LOG == REPOSITORY / "eval" / "LOG.md" and throughput.LOG.exists()
