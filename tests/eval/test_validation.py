"""Validation figures over all batches together, against scikit-learn and the plain losses."""

import math
from unittest.mock import Mock

import pytest
import torch
import torch._dynamo
from sklearn.metrics import accuracy_score

from data import DataError
from data.blocks import Batch
from eval.validation import encoder_speeds, validate
from losses import LossSettings, distillation_loss, fused_distillation_loss
from model import EncoderConfig, MaskedLM
from model.training.device import Runtime, prepare_models
from model.training.state import Diverged

RUNTIME = Runtime(torch.device("cpu"))
SETTINGS = LossSettings(temperature=2.0, weights=(0.2, 0.3, 0.5))


def model(seed, hidden_size=16):
    torch.manual_seed(seed)
    return MaskedLM(EncoderConfig(1, hidden_size, 2, 16, vocab_size=12)).double().eval()


def close_models():
    """A student and a teacher that predict the same tokens now and then."""
    student, teacher = model(0), model(0).requires_grad_(False)
    for parameter in teacher.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return student, teacher


def uneven_batches(student):
    """Different numbers of masked tokens, so that a mean of means would differ."""
    torch.manual_seed(1)
    batches = []
    for rows, fraction in ((3, 0.9), (2, 0.2), (1, 0.5)):
        input_ids = torch.randint(2, 12, (rows, 9))
        real = torch.arange(9) < torch.randint(2, 10, (rows, 1))
        input_ids[~real] = 1
        predictions = student(input_ids, real).argmax(dim=-1)
        labels = torch.where(torch.rand(rows, 9) < 0.5, predictions, torch.randint(2, 12, (rows, 9)))
        batches.append(Batch(input_ids, torch.where(real & (torch.rand(rows, 9) < fraction), labels, -100), real))
    return batches


def one_batch(label):
    return Batch(torch.full((1, 3), 5), torch.full((1, 3), label), torch.ones(1, 3, dtype=torch.bool))


@torch.no_grad()
def test_accuracies_agreement_and_losses_over_all_batches():
    student, teacher = close_models()
    batches = uneven_batches(student)
    labels, predictions, theirs, parts = [], [], [], []
    for input_ids, target, real, _ in batches:
        masked, own, other = target != -100, student(input_ids, real), teacher(input_ids, real)
        labels += target[masked].tolist()
        predictions += own[masked].argmax(dim=-1).tolist()
        theirs += other[masked].argmax(dim=-1).tolist()
        hidden = student.encoder(input_ids, real), teacher.encoder(input_ids, real)
        parts.append(distillation_loss(own, other, *hidden, target, real, temperature=2.0))
    student.train()
    result = validate(student, teacher, batches, SETTINGS, RUNTIME)
    assert student.training and not teacher.training
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert result["teacher_accuracy"] == pytest.approx(accuracy_score(labels, theirs))
    assert result["agreement"] == pytest.approx(accuracy_score(theirs, predictions))
    assert len({result["accuracy"], result["teacher_accuracy"], result["agreement"], 0.0, 1.0}) == 5
    sums = [sum(part[i].item() for part in parts) for i in range(5)]
    soft, cosine, mlm = sums[0] / sums[3], sums[1] / sums[3], sums[2] / sums[4]
    expected = dict(soft_label_loss=soft, cosine_loss=cosine, mlm_loss=mlm, pseudo_perplexity=math.exp(mlm))
    expected |= dict(loss=0.2 * soft + 0.3 * cosine + 0.5 * mlm)
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    swapped = validate(teacher, student, batches, SETTINGS, RUNTIME)
    assert result["teacher_mlm_loss"] == pytest.approx(swapped["mlm_loss"], rel=1e-9) != result["mlm_loss"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_speed_of_the_encoders(precision):
    """One has 12 layers, the other 1; both run without dropout, as they would in use."""
    batch = Batch(torch.full((8, 24), 5), torch.full((8, 24), -100), torch.ones(8, 24, dtype=torch.bool))
    models = {layers: MaskedLM(EncoderConfig(layers, 64, 2, 64, vocab_size=12)).train() for layers in (12, 1)}
    speeds = encoder_speeds(models, batch, Runtime(torch.device("cpu"), precision))
    assert speeds[1] / speeds[12] > 3 and not any(model.training for model in models.values())


def test_nothing_is_compiled_for_validation():
    """Its shapes are others than training's: together, more forms than torch.compile makes."""
    student, teacher = close_models()
    batches = uneven_batches(student)
    expected = validate(student, teacher, batches, SETTINGS, RUNTIME)
    compiled = Runtime(RUNTIME.device, compiled=True)
    for module in (student, teacher):
        module.float()
    prepare_models(student, teacher, compiled)
    torch._dynamo.utils.counters.clear()
    result = validate(student, teacher, batches, SETTINGS, compiled)
    assert not torch._dynamo.utils.counters["frames"]
    assert result == pytest.approx(expected, rel=1e-5)
    student.encoder(batches[0].input_ids, batches[0].real)  # is compiled
    assert torch._dynamo.utils.counters["frames"]["ok"] == 1


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 0.0, 2.0), (0.0, 0.3, 0.0)])
def test_all_terms_are_computed_whatever_the_weights(monkeypatch, weights):
    """The weights enter the total only; the fused loss, whose total is not used here, is not given any."""
    student, teacher = close_models()
    batches, spy = uneven_batches(student), Mock(wraps=fused_distillation_loss)
    monkeypatch.setattr("eval.validation.fused_distillation_loss", spy)
    expected = validate(student, teacher, batches, SETTINGS, RUNTIME)
    result = validate(student, teacher, batches, SETTINGS._replace(weights=weights), RUNTIME)
    terms = [result.pop(name) for name in ("soft_label_loss", "cosine_loss", "mlm_loss")]
    assert result.pop("loss") == pytest.approx(sum(weight * term for weight, term in zip(weights, terms)), rel=1e-12)
    assert terms == [expected[name] for name in ("soft_label_loss", "cosine_loss", "mlm_loss")] and min(terms) > 0
    assert result == {name: expected[name] for name in result}
    assert spy.call_count == 6 and not any("weights" in call.kwargs for call in spy.call_args_list)


def test_without_a_teacher_and_with_one_of_another_width():
    student = model(0)
    batches = uneven_batches(student)
    alone = validate(student, None, batches, SETTINGS, RUNTIME)
    assert set(alone) == {"loss", "mlm_loss", "accuracy", "pseudo_perplexity"} and alone["loss"] == alone["mlm_loss"]
    wider = validate(student, model(3, hidden_size=24), batches, SETTINGS, RUNTIME)
    assert wider["mlm_loss"] == pytest.approx(alone["mlm_loss"]) and wider["cosine_loss"] == 0
    assert all(parameter.grad is None for parameter in student.parameters())


@pytest.mark.parametrize("teacher", [None, model(1)], ids=["alone", "with a teacher"])
def test_no_masked_token_is_an_error(teacher):
    with pytest.raises(DataError, match="No token of the held-out text is masked"):
        validate(model(0), teacher, [one_batch(-100)], SETTINGS, RUNTIME)


def test_outputs_that_are_not_finite_are_an_error():
    student = model(0).requires_grad_(False)
    student.bias[3] = float("inf")
    with pytest.raises(Diverged, match="outputs on the held-out text are not finite"):
        validate(student, None, [one_batch(7)], SETTINGS, RUNTIME)
