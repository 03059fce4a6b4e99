"""The heads of section 4 against transformers on the same weights, padded and packed."""

import pytest
import torch

from eval.tasks.batching import packed_outputs
from model import EncoderConfig, MaskedLM, ModelError, QuestionAnswerer, SequenceClassifier, TokenClassifier
from tests.helpers import convert, huggingface_model, padded_batch

CONFIG = EncoderConfig(2, 48, 4, 80, 211)
SEQLENS = (9, 4, 9, 1, 30, 4)
HEADS = {
    "CamembertForMaskedLM": (MaskedLM, {}, (6, 30, 211)),
    "CamembertForSequenceClassification": (SequenceClassifier, dict(num_labels=3), (6, 3)),
    "CamembertForTokenClassification": (TokenClassifier, dict(num_labels=5), (6, 30, 5)),
    "CamembertForQuestionAnswering": (QuestionAnswerer, {}, (6, 30, 2)),
}


@pytest.mark.parametrize("kind", HEADS)
@torch.no_grad()
def test_the_head_agrees_with_transformers(kind):
    ours_class, labels, shape = HEADS[kind]
    theirs = huggingface_model(kind=kind, **labels)
    ours = convert(theirs).eval()
    assert type(ours) is ours_class
    input_ids, mask = padded_batch(SEQLENS, 211)
    result, actual = theirs(input_ids, attention_mask=mask.long()), ours(input_ids, mask)
    expected = torch.stack([result.start_logits, result.end_logits], -1) if "start_logits" in result else result.logits
    assert actual.shape == expected.shape == shape
    packed = packed_outputs(ours, [row[real].tolist() for row, real in zip(input_ids, mask)], torch.device("cpu"))
    assert len(packed) == len(SEQLENS)
    for length, own, wanted, output in zip(SEQLENS, actual, expected, packed, strict=True):
        own, wanted = (own, wanted) if len(shape) == 2 else (own[:length], wanted[:length])
        assert (own - wanted).abs().max() < 1e-11 and (output - wanted).abs().max() < 1e-11
        assert output.shape == wanted.shape


def test_the_decoder_is_the_word_embeddings():
    model, hidden = MaskedLM(CONFIG), torch.randn(3, 48)
    assert model.decoder is model.encoder.embeddings.word.weight and "decoder.weight" not in model.state_dict()
    assert torch.equal(model.head(hidden), model.transform(hidden) @ model.decoder.T + model.bias)


def test_label_names():
    assert SequenceClassifier(CONFIG, 2).labels == ("LABEL_0", "LABEL_1")
    assert TokenClassifier(CONFIG, 2, ["O", "PER"]).labels == ("O", "PER")
    with pytest.raises(ModelError, match="at least 1"):
        SequenceClassifier(CONFIG, 0)
    with pytest.raises(ModelError, match="2 different label names"):
        TokenClassifier(CONFIG, 2, ["O", "O"])


def test_the_problem_type():
    defaults = {1: "regression", 2: "single_label_classification", 3: "single_label_classification"}
    assert {number: SequenceClassifier(CONFIG, number).problem_type for number in defaults} == defaults
    assert (
        SequenceClassifier(CONFIG, 1, None, "multi_label_classification").problem_type == "multi_label_classification"
    )
    assert SequenceClassifier(CONFIG, 3, None, "regression").problem_type == "regression"
    with pytest.raises(ModelError, match="at least 2 labels: the softmax of one is always 1"):
        SequenceClassifier(CONFIG, 1, None, "single_label_classification")
    with pytest.raises(ModelError, match="'softmax', not one of"):
        SequenceClassifier(CONFIG, 2, None, "softmax")


@pytest.mark.parametrize("value", [True, "0", float("nan"), float("inf")])
def test_a_threshold_is_a_finite_number(value):
    assert QuestionAnswerer(CONFIG).no_answer_threshold is None
    assert QuestionAnswerer(CONFIG, -1.5).no_answer_threshold == -1.5
    with pytest.raises(ModelError, match="a finite number is needed"):
        QuestionAnswerer(CONFIG, value)
