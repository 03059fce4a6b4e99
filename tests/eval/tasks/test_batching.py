"""Batched inference: every text has the output that it has alone, in the given order, for any budget."""

import copy
import random

import pytest
import torch

from eval.tasks.batching import infer, packed_outputs
from model import EncoderConfig, ModelError, QuestionAnswerer, SequenceClassifier, TokenClassifier
from model.inference import freeze
from model.training.device import Runtime
from tests.eval.tasks.shared import RUNTIME

CONFIG = EncoderConfig(2, 16, 2, 16, 60, max_positions=34)
MODELS = {
    "sequence": (lambda: SequenceClassifier(CONFIG, 3), lambda length: (3,)),
    "token": (lambda: TokenClassifier(CONFIG, 5), lambda length: (length, 5)),
    "question": (lambda: QuestionAnswerer(CONFIG), lambda length: (length, 2)),
}


@pytest.fixture(params=MODELS)
def model_and_shape(request):
    torch.manual_seed(0)
    make, shape = MODELS[request.param]
    return make().eval(), shape


def texts(count: int = 50) -> list[list[int]]:
    rng = random.Random(0)
    return [rng.choices(range(7, 60), k=rng.randrange(1, 33)) for _ in range(count)]


@pytest.mark.parametrize("budget", [1, 40, 10**6])
def test_every_text_has_the_output_that_it_has_alone(model_and_shape, budget):
    model, shape = model_and_shape
    found = infer(model, texts(), RUNTIME, budget)
    assert len(found) == 50
    for ids, output in zip(texts(), found):
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0]
        assert output.shape == shape(len(ids)) == expected.shape and output.dtype == torch.float32
        assert (output - expected).abs().max() < 2e-5


def test_gradients_in_training_and_none_in_inference(model_and_shape):
    model, _ = model_and_shape
    outputs = packed_outputs(model, texts(5), RUNTIME.device)
    sum(output.square().sum() for output in outputs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(output.requires_grad for output in infer(model, texts(5), RUNTIME))


def test_outputs_are_float32_in_half_precision(model_and_shape):
    model, _ = model_and_shape
    exact, in_bf16 = infer(model, texts(9), RUNTIME), copy.deepcopy(model)
    freeze(in_bf16.encoder, "bf16")
    rough = infer(in_bf16, texts(9), Runtime(RUNTIME.device, "bf16"))
    for one, two in zip(exact, rough):
        assert two.dtype == torch.float32 and (one - two).abs().max() < 0.1
    assert any(not torch.equal(one, two) for one, two in zip(exact, rough))
    assert not any(torch.equal(two, two.bfloat16().float()) for two in rough)  # the head is not rounded to 8 bits


def test_no_texts_and_a_text_that_is_too_long(model_and_shape):
    model, _ = model_and_shape
    assert infer(model, [], RUNTIME) == []
    with pytest.raises(ModelError, match="33 tokens is longer than the model's maximum of 32"):
        infer(model, [[9] * 33, [9]], RUNTIME)
