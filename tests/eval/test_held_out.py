"""Masked-token accuracy, counted over all batches together."""

import pytest
import torch
from sklearn.metrics import accuracy_score

from data.blocks import Batch
from eval.held_out import Diverged, masked_accuracy
from model import EncoderConfig, MaskedLM


def test_it_is_scikit_learns_accuracy_over_the_masked_tokens_of_all_batches():
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(1, 16, 2, 16, 12)).train()
    batches = []
    for rows, share in ((3, 0.9), (2, 0.2), (1, 0.5)):  # different counts, so that a mean of means would differ
        input_ids = torch.randint(2, 12, (rows, 9))
        real = torch.arange(9) < torch.randint(2, 10, (rows, 1))
        input_ids[~real] = 1
        with torch.no_grad():
            guesses = model.eval()(input_ids, real).argmax(dim=-1)
        labels = torch.where(torch.rand(rows, 9) < 0.5, guesses, torch.randint(2, 12, (rows, 9)))
        labels = torch.where(real & (torch.rand(rows, 9) < share), labels, -100)
        batches.append(Batch(input_ids, labels, real))
    model.train()
    expected_labels = torch.cat([batch.labels[batch.labels != -100] for batch in batches])
    with torch.no_grad():
        logits = [model.eval()(batch.input_ids, batch.real)[batch.labels != -100] for batch in batches]
    expected = accuracy_score(expected_labels, torch.cat(logits).argmax(dim=-1))
    model.train()
    assert 0 < expected < 1
    assert masked_accuracy(model, batches) == pytest.approx(expected)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_nothing_masked_is_a_sentence():
    model = MaskedLM(EncoderConfig(1, 16, 2, 16, 12))
    batch = Batch(torch.full((1, 3), 5), torch.full((1, 3), -100), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="nothing can be measured"):
        masked_accuracy(model, [batch])


def test_outputs_that_are_no_numbers_are_not_an_accuracy():
    model = MaskedLM(EncoderConfig(1, 16, 2, 16, 12))
    with torch.no_grad():
        model.bias[3] = float("inf")
    batch = Batch(torch.full((1, 3), 5), torch.full((1, 3), 7), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(Diverged, match="no numbers"):
        masked_accuracy(model, [batch])
