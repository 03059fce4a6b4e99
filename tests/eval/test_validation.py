"""Held-out measures, counted over all batches together, against scikit-learn and the plain losses."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score

from data.blocks import Batch
from eval.validation import validate
from losses import distillation_loss
from model import EncoderConfig, MaskedLM
from model.training.device import Runtime
from model.training.state import Diverged
from train import Options

MACHINE = Runtime(torch.device("cpu"))
OPTIONS = Options(temperature=2.0, weights=(0.2, 0.3, 0.5))


def model(seed, **sizes):
    torch.manual_seed(seed)
    sizes = dict(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=16, vocab_size=12) | sizes
    config = EncoderConfig(**sizes)
    return MaskedLM(config).double().eval()


def uneven_batches(student):
    """Different counts of masked tokens, so that a mean of means would differ."""
    torch.manual_seed(1)
    batches = []
    for rows, share in ((3, 0.9), (2, 0.2), (1, 0.5)):
        input_ids = torch.randint(2, 12, (rows, 9))
        real = torch.arange(9) < torch.randint(2, 10, (rows, 1))
        input_ids[~real] = 1
        with torch.no_grad():
            guesses = student(input_ids, real).argmax(dim=-1)
        labels = torch.where(torch.rand(rows, 9) < 0.5, guesses, torch.randint(2, 12, (rows, 9)))
        batches.append(Batch(input_ids, torch.where(real & (torch.rand(rows, 9) < share), labels, -100), real))
    return batches


@torch.no_grad()
def test_accuracies_agreement_and_losses_over_all_batches():
    student, teacher = model(0), model(0)
    for parameter in teacher.parameters():  # near enough to agree now and then
        parameter += 0.05 * torch.randn_like(parameter)
    batches = uneven_batches(student)
    labels, guesses, theirs = [], [], []
    for batch in batches:
        masked = batch.labels != -100
        labels += batch.labels[masked].tolist()
        guesses += student(batch.input_ids, batch.real)[masked].argmax(dim=-1).tolist()
        theirs += teacher(batch.input_ids, batch.real)[masked].argmax(dim=-1).tolist()
    student.train()
    result = validate(student, teacher, batches, OPTIONS, MACHINE)
    assert student.training and not teacher.training
    student.eval()
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, guesses))
    assert result["teacher_accuracy"] == pytest.approx(accuracy_score(labels, theirs))
    assert result["agreement"] == pytest.approx(accuracy_score(theirs, guesses))
    assert len({result["accuracy"], result["teacher_accuracy"], result["agreement"], 0.0, 1.0}) == 5
    parts = [
        distillation_loss(
            student(b.input_ids, b.real), teacher(b.input_ids, b.real), student.encoder(b.input_ids, b.real),
            teacher.encoder(b.input_ids, b.real), b.labels, b.real, temperature=2.0,
        )
        for b in batches
    ]  # fmt: skip
    sums = [sum(part[i].item() for part in parts) for i in range(5)]
    soft, cosine, mlm = sums[0] / sums[3], sums[1] / sums[3], sums[2] / sums[4]
    assert result["soft_label_loss"] == pytest.approx(soft, rel=1e-9)
    assert result["cosine_loss"] == pytest.approx(cosine, rel=1e-9)
    assert result["mlm_loss"] == pytest.approx(mlm, rel=1e-9)
    assert result["loss"] == pytest.approx(0.2 * soft + 0.3 * cosine + 0.5 * mlm, rel=1e-9)
    assert result["pseudo_perplexity"] == pytest.approx(math.exp(mlm), rel=1e-9)


def test_without_a_teacher_and_with_a_wider_one():
    student = model(0)
    batches = uneven_batches(student)
    alone = validate(student, None, batches, OPTIONS, MACHINE)
    assert set(alone) == {"loss", "mlm_loss", "accuracy", "pseudo_perplexity"} and alone["loss"] == alone["mlm_loss"]
    wider = validate(student, model(3, hidden_size=24), batches, OPTIONS, MACHINE)
    assert wider["mlm_loss"] == pytest.approx(alone["mlm_loss"]) and wider["cosine_loss"] == 0
    assert all(parameter.grad is None for parameter in student.parameters())


def test_nothing_masked_is_a_sentence():
    batch = Batch(torch.full((1, 3), 5), torch.full((1, 3), -100), torch.ones(1, 3, dtype=torch.bool))
    for teacher in (None, model(1)):
        with pytest.raises(ValueError, match="nothing can be measured"):
            validate(model(0), teacher, [batch], OPTIONS, MACHINE)


def test_outputs_that_are_no_numbers_are_no_measure():
    student = model(0)
    with torch.no_grad():
        student.bias[3] = float("inf")
    batch = Batch(torch.full((1, 3), 5), torch.full((1, 3), 7), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(Diverged, match="no numbers"):
        validate(student, None, [batch], OPTIONS, MACHINE)
