"""Batched inference: every text has the output that it has alone, in the given order, for any budget."""

import copy
import random
from unittest.mock import patch

import pytest
import torch

from data.tasks import QuestionExample, TextExample, WordsExample
from eval.tasks.batching import TaskSettings, infer, infer_asked, packed_outputs
from eval.tasks.ner import NerTask
from eval.tasks.qa import QaTask
from model import EncoderConfig, ModelError, QuestionAnswerer, SequenceClassifier, TokenClassifier
from model.inference import freeze
from model.training.device import Runtime
from tests.eval.tasks.shared import RUNTIME, TOKENIZER, ignore

CONFIG = EncoderConfig(2, 16, 2, 16, 60, max_positions=34)
CONFIG_1005 = EncoderConfig(2, 16, 2, 16, 1005, max_positions=34)
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


LONG = "Le film de Brest est long et le chat de Landerneau a faim. " * 3  # several windows
ASKED = {  # a model's task, examples, and the range of the tokens whose outputs it decodes: of pieces, of the context
    "ner": (
        lambda settings: (TokenClassifier(CONFIG_1005, 3), NerTask(settings, ("O", "B-LOC", "I-LOC"))),
        [TextExample("", ""), TextExample(LONG, ""), TextExample(" ", ""), WordsExample(("Elle", "vit", "à"), ())],
        lambda feature: range(1, len(feature.ids) - 1),
    ),
    "qa": (
        lambda settings: (QuestionAnswerer(CONFIG_1005), QaTask(settings)),
        [QuestionExample("", text, "Où est-il ?", ()) for text in (LONG, "", "Ici.", LONG[:20])],
        lambda feature: [0, *range(feature.ids.index(6) + 2, len(feature.ids) - 1)],  # </s></s> context </s>
    ),
}


@pytest.mark.parametrize("precision", [None, "fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ASKED)
def test_the_last_layer_and_the_head_compute_only_the_tokens_that_are_asked_for(name, precision):
    """With the same outputs as if they computed all, also of sentences without any."""
    torch.manual_seed(0)
    make, examples, expected_of = ASKED[name]
    model, task = make(TaskSettings(TOKENIZER, 32))
    if precision:
        freeze(model.eval().encoder, precision)
    features = task.encode(examples, ignore)
    whole = infer(model.eval(), [feature.ids for feature in features], RUNTIME)
    heads, layers = patch.object(model, "head", wraps=model.head), model.encoder.layers[-1]
    with heads as head, patch.object(layers, "after_attention", wraps=layers.after_attention) as last:
        for budget in (2048, 1):  # all together, and each alone
            found = infer_asked(model, features, RUNTIME, budget)
            for feature, output, all_tokens in zip(features, found, whole, strict=True):
                expected = all_tokens[list(expected_of(feature))]
                assert output.shape == expected.shape
                assert torch.allclose(output, expected, atol=0.02 if precision == "bf16" else 1e-5)
    number = 2 * sum(len(expected_of(feature)) for feature in features)
    assert len(features) > len(examples)
    assert sum(len(call.args[0]) for call in head.call_args_list) == number
    assert sum(call.args[0].shape[-2] for call in last.call_args_list) == number


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
