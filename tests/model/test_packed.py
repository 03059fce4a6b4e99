"""Texts without padding, one after the other: the same as with padding, and as transformers text by text."""

import pytest
import torch

from eval.tasks.batching import packed_outputs
from model import (
    EncoderConfig,
    MaskedLM,
    ModelError,
    QuestionAnswerer,
    SequenceClassifier,
    TokenClassifier,
    encode_packed,
)
from model.attention import scaled_dot_product
from model.packed import packed_attention
from tests.helpers import convert, huggingface_model, padded_batch, relative_norm

LENGTHS = {
    "unsorted": (9, 4, 9, 1, 30, 4),
    "sorted": (1, 2, 2, 2, 17, 17, 40),
    "equal": (7, 7, 7),
    "one text": (13,),
    "one token": (1,),
    "texts of one token": (1, 1, 1, 1),
    "the longest": (512, 1, 512),
}


@pytest.fixture(scope="module")
def theirs():
    return huggingface_model()


@pytest.fixture(scope="module")
def ours(theirs):
    return convert(theirs).eval()


def batch(lengths):
    """Random texts -> padded (B, n), mask (B, n), packed (T,)"""
    input_ids, mask = padded_batch(lengths, 211)
    return input_ids, mask, input_ids[mask]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
@pytest.mark.parametrize("name", LENGTHS)
@torch.no_grad()
def test_packed_equals_padded(theirs, dtype, tolerance, name):
    encoder = convert(theirs).eval().to(dtype).encoder
    padded, mask, packed = batch(LENGTHS[name])
    hidden = encode_packed(encoder, packed, LENGTHS[name])
    assert hidden.shape == (len(packed), 48) and hidden.dtype == dtype
    assert (hidden - encoder(padded, mask)[mask]).abs().max() < tolerance


@pytest.mark.parametrize("name", LENGTHS)
@torch.no_grad()
def test_packed_equals_transformers_text_by_text(theirs, ours, name):
    _, _, packed = batch(LENGTHS[name])
    hidden = encode_packed(ours.encoder, packed, LENGTHS[name])
    for text, state in zip(packed.split(LENGTHS[name]), hidden.split(LENGTHS[name]), strict=True):
        assert (state - theirs.roberta(text[None]).last_hidden_state[0]).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["unsorted", "equal", "one text"])
def test_gradients_are_those_of_the_padded_form(ours, name):
    padded, mask, packed = batch(LENGTHS[name])
    weights = torch.randn(len(packed), 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for output in (lambda: encode_packed(ours.encoder, packed, LENGTHS[name]), lambda: ours.encoder(padded, mask)[mask]):
        ours.zero_grad()
        (output() * weights).sum().backward()
        found.append({key: p.grad.clone() for key, p in ours.encoder.named_parameters()})
    actual, expected = found
    largest = max(gradient.norm() for gradient in expected.values())
    for key in expected:
        if key.endswith("attention.key.bias"):  # softmax does not see what all keys share: zero, but for rounding
            assert actual[key].norm() < 1e-10 * largest
        else:
            assert relative_norm(actual[key], expected[key]) < 1e-12, key
    assert expected["embeddings.word.weight"].norm() > 0


@pytest.mark.parametrize("lengths", [(9, 4, 9, 1), (6, 6, 6)], ids=str)
@torch.no_grad()
def test_no_text_sees_another(ours, lengths):
    _, _, packed = batch(lengths)
    before = encode_packed(ours.encoder, packed, lengths).split(lengths)
    for changed in range(len(lengths)):
        start = sum(lengths[:changed])
        other = packed.clone()
        other[start : start + lengths[changed]] = (other[start : start + lengths[changed]] + 5) % 200 + 7
        after = encode_packed(ours.encoder, other, lengths).split(lengths)
        for place, (one, two) in enumerate(zip(before, after)):
            difference = (one - two).abs().max()
            assert difference > 1e-3 if place == changed else difference < 1e-12


@pytest.mark.parametrize("lengths", [[5, 5, 9], [1, 7, 1], [4]])
def test_the_first_tokens_alone_are_the_same(ours, lengths):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(7, 200, (sum(lengths),), generator=generator)
    states = encode_packed(ours.encoder, input_ids, lengths).split(lengths)
    first = encode_packed(ours.encoder, input_ids, lengths, first_only=True)
    torch.testing.assert_close(first, torch.stack([state[0] for state in states]), atol=1e-12, rtol=0)


def test_no_gradient_reaches_another_text(ours):
    lengths = (5, 3, 3)
    _, _, packed = batch(lengths)
    rows = torch.arange(11)
    ours.zero_grad()
    seen = {}
    handle = ours.encoder.embeddings.norm.register_forward_hook(lambda _, inputs, output: seen.update(h=inputs[0]))
    hidden = encode_packed(ours.encoder, packed, lengths)
    handle.remove()
    (gradient,) = torch.autograd.grad(hidden[5:8].square().sum(), seen["h"])
    gradient = gradient.reshape(11, 48).norm(dim=1)
    assert (gradient[(rows >= 5) & (rows < 8)] > 0).all()
    assert (gradient[(rows < 5) | (rows >= 8)] == 0).all()


@torch.no_grad()
def test_a_pad_inside_a_text_has_the_positions_of_transformers(theirs, ours):
    """A literal <pad> is a token that counts for no position; unlike padding, it is attended to."""
    text = torch.tensor([5, 9, 1, 17, 1, 1, 30, 6])
    expected = theirs.roberta(text[None], attention_mask=torch.ones(1, 8)).last_hidden_state[0]
    other = torch.tensor([5, 40, 41, 6])
    hidden = encode_packed(ours.encoder, torch.cat([other, text, other]), (4, 8, 4))
    assert (hidden[4:12] - expected).abs().max() < 1e-12
    assert (hidden[:4] - theirs.roberta(other[None]).last_hidden_state[0]).abs().max() < 1e-12
    assert (hidden[:4] - hidden[12:]).abs().max() < 1e-12


def test_too_long_a_text_is_a_sentence():
    encoder = MaskedLM(EncoderConfig(1, 8, 2, 8, 20)).eval().encoder
    assert encode_packed(encoder, torch.full((1024,), 9), (512, 512)).shape == (1024, 8)  # together they may be longer
    with pytest.raises(ModelError, match="513 tokens is longer than the model's 512"):
        encode_packed(encoder, torch.full((520,), 9), (7, 513))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    encoder = MaskedLM(EncoderConfig(2, 16, 2, 16, 30, dropout=0.3)).encoder
    input_ids, lengths = torch.arange(7, 19), (4, 4, 3, 1)
    assert not torch.equal(encode_packed(encoder, input_ids, lengths), encode_packed(encoder, input_ids, lengths))
    encoder.eval()
    assert torch.equal(encode_packed(encoder, input_ids, lengths), encode_packed(encoder, input_ids, lengths))


def test_dropout_reaches_the_attention():
    """With the other dropouts off, what differs is drawn in equation (5)."""
    torch.manual_seed(0)
    attention = MaskedLM(EncoderConfig(1, 16, 2, 16, 30, dropout=0.5)).encoder.layers[0].attention
    hidden = torch.randn(1, 6, 16)
    assert not torch.equal(attention(hidden, lengths=(4, 2)), attention(hidden, lengths=(4, 2)))
    attention.eval()
    assert torch.equal(attention(hidden, lengths=(4, 2)), attention(hidden, lengths=(4, 2)))


def test_packed_attention_is_equation_5_of_each_text():
    torch.manual_seed(0)
    lengths = (3, 1, 1, 5, 3)
    parts = torch.randn(3, 1, 4, 13, 6, dtype=torch.float64)
    expected = [scaled_dot_product(*text)[0] for text in zip(*(part.split(lengths, dim=2) for part in parts))]
    assert (packed_attention(*parts, lengths) - torch.cat(expected, dim=2)).abs().max() < 1e-12


KINDS = {
    "CamembertForMaskedLM": (MaskedLM, {}),
    "CamembertForSequenceClassification": (SequenceClassifier, dict(num_labels=3)),
    "CamembertForTokenClassification": (TokenClassifier, dict(num_labels=5)),
    "CamembertForQuestionAnswering": (QuestionAnswerer, {}),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_head_on_packed_texts(kind):
    theirs = huggingface_model(kind=kind, **KINDS[kind][1])
    ours = convert(theirs).eval()
    assert type(ours) is KINDS[kind][0]
    lengths = LENGTHS["unsorted"]
    padded, mask, packed = batch(lengths)
    outputs = packed_outputs(ours, [ids.tolist() for ids in packed.split(lengths)], torch.device("cpu"))
    expected = ours(padded, mask)
    assert len(outputs) == len(lengths)
    for row, (length, output, text) in enumerate(zip(lengths, outputs, packed.split(lengths))):
        wanted = expected[row] if expected.ndim == 2 else expected[row, :length]
        assert output.shape == wanted.shape
        assert (output - wanted).abs().max() < 1e-11
        result = theirs(text[None])
        logits = (
            torch.stack([result.start_logits, result.end_logits], -1) if "start_logits" in result else result.logits
        )
        assert (output - logits[0]).abs().max() < 1e-11
