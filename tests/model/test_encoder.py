"""The encoder and the masked-LM head against transformers' CamembertForMaskedLM, through the real converter."""

import pytest
import torch

from model import EncoderConfig, MaskedLM, ModelError
from model.attention import scaled_dot_product
from model.checkpoints.load import load_checkpoint
from model.checkpoints.names import from_huggingface_key
from tests import helpers
from tests.helpers import DEVICE, convert, huggingface_model, padded_batch, relative_norm

BASE = dict(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072, vocab_size=32005)
CONFIGURATIONS = {
    "two layers": {},
    "one layer": dict(num_hidden_layers=1),
    "three heads": dict(hidden_size=51, num_attention_heads=3, intermediate_size=33),
    "seven heads": dict(hidden_size=56, num_attention_heads=7, num_hidden_layers=3),
    "relu": dict(hidden_act="relu"),
    "wide and flat": dict(num_hidden_layers=4, hidden_size=24, num_attention_heads=1, intermediate_size=200),
    "pads with 0": dict(pad_token_id=0),
    "camembert-base": BASE,
}
ALL_BUT_BASE_ON_GPU = [
    pytest.param(name, marks=() if name == "camembert-base" else pytest.mark.gpu) for name in CONFIGURATIONS
]
LENGTHS = (37, 1, 512, 2)


@pytest.fixture(params=CONFIGURATIONS, scope="module")
def saved(request, tmp_path_factory):
    """A transformers model on DEVICE, and the folders in which save_pretrained left it in float64 and in float32."""
    model = huggingface_model(**CONFIGURATIONS[request.param])
    folders = {}
    for dtype in (torch.float32, torch.float64):  # rounded once, so that both files hold the same values
        model = model.to(dtype)
        folders[dtype] = tmp_path_factory.mktemp("saved")
        model.save_pretrained(folders[dtype])
    return model.to(DEVICE), folders


def batch_for(model, base_lengths):
    """A padded batch on DEVICE, a small one for a model of the base size."""
    lengths = base_lengths if model.config.hidden_size == 768 else LENGTHS
    input_ids, mask = padded_batch(lengths, model.config.vocab_size, pad_id=model.config.pad_id)
    return input_ids.to(DEVICE), mask.to(DEVICE)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@torch.no_grad()
def test_every_hidden_state_and_the_logits_agree(saved, dtype, tolerance):
    theirs, ours = saved[0].to(dtype), load_checkpoint(saved[1][dtype]).to(DEVICE)
    assert ours.bias.dtype == dtype  # the converter keeps the precision of the file
    input_ids, mask = batch_for(ours, (128, 1))
    cases = [
        (input_ids, mask, mask.long()),
        (input_ids[:1, :20], None, None),  # without padding
        (input_ids, None, mask.long()),  # without a mask this encoder finds padding by its id …
        (input_ids, torch.ones_like(mask), None),  # … and transformers attends to it
    ]
    for given, our_mask, their_mask in cases[: 2 if ours.config.hidden_size == 768 else 4]:
        expected = theirs(given, attention_mask=their_mask, output_hidden_states=True)
        states = ours.encoder.hidden_states(given, our_mask)
        assert len(states) == ours.config.num_layers + 1
        for state, hidden in zip(states, expected.hidden_states, strict=True):
            assert relative_norm(state, hidden) < tolerance
        assert relative_norm(ours(given, our_mask), expected.logits) < tolerance
        assert torch.equal(ours.encoder(given, our_mask), states[-1])


@pytest.mark.gpu
@torch.no_grad()
def test_in_bf16_every_hidden_state_and_the_logits_are_no_worse_than_those_of_transformers(saved):
    """The error against float64 is at most 1.5 times that of transformers' model under the same autocast."""
    truth, ours = saved[0].double(), load_checkpoint(saved[1][torch.float32]).to(DEVICE)
    input_ids, mask = batch_for(ours, (64, 1))
    cases = [(input_ids, mask), (input_ids[:1, :20], None)]
    expected = [truth(*case, output_hidden_states=True) for case in cases]
    theirs = saved[0].float()
    for case, true in zip(cases, expected, strict=True):
        with torch.autocast(DEVICE.type, torch.bfloat16):
            rounded = theirs(*case, output_hidden_states=True)
            states = [*ours.encoder.hidden_states(*case), ours(*case)]
        for state, other, exact in zip(
            states, (*rounded.hidden_states, rounded.logits), (*true.hidden_states, true.logits), strict=True
        ):
            assert relative_norm(state, exact) <= 1.5 * relative_norm(other, exact) + 1e-6
        assert relative_norm(states[-1], true.logits) > 1e-4  # products were rounded


@pytest.mark.parametrize("saved", ALL_BUT_BASE_ON_GPU, indirect=True)
def test_gradients_of_every_parameter_agree(saved):
    theirs, ours = saved[0].double(), load_checkpoint(saved[1][torch.float64]).to(DEVICE)
    input_ids, mask = batch_for(ours, (20, 7))
    weights = torch.randn(input_ids.shape + (ours.config.vocab_size,), dtype=torch.float64, device=DEVICE)[mask]
    theirs.zero_grad()
    (theirs(input_ids, attention_mask=mask.long()).logits[mask] * weights).sum().backward()
    (ours(input_ids, mask)[mask] * weights).sum().backward()
    expected = {name.removeprefix("roberta."): p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}
    token_type = expected.pop("embeddings.token_type_embeddings.weight")
    for alias in ("lm_head.decoder.weight", "lm_head.decoder.bias"):  # the tied matrix and the bias, a second time
        expected.pop(alias)
    expected = {from_huggingface_key(name, "MaskedLM"): gradient for name, gradient in expected.items()}
    actual = helpers.gradients(ours)
    helpers.assert_close(actual, expected, zero=1e-10)
    # the token-type row, which the converter adds to each position row, gets the sum of their gradients
    assert relative_norm(actual["encoder.embeddings.position.weight"].sum(dim=0), token_type[0]) < 1e-5


@pytest.mark.parametrize("dropout", [0.0, 0.5])  # without effect in evaluation mode
def test_the_literal_equation_5_equals_scaled_dot_product_attention(dropout):
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(2, 48, 4, 80, 211, dropout=dropout)).double().eval()
    attention = model.encoder.layers[0].attention
    hidden = torch.randn(3, 11, 48, dtype=torch.float64)
    mask = torch.arange(11) < torch.tensor([[11], [4], [1]])
    projected = attention.queries(hidden), attention.keys(hidden), attention.values(hidden)
    heads, maps = scaled_dot_product(*projected, mask)
    assert (attention.out(attention.concatenate_heads(heads)) - attention(hidden, mask)).abs().max() < 1e-12
    assert maps.shape == (3, 4, 11, 11) and (maps.sum(dim=-1) - 1).abs().max() < 1e-12
    assert maps[1, :, :, 4:].max() == 0  # no token attends to padding
    assert torch.equal(maps, attention.attention_maps(hidden, mask))


def test_attention_maps_are_those_of_transformers():
    theirs = huggingface_model()
    theirs.set_attn_implementation("eager")
    ours = convert(theirs)
    input_ids, mask = padded_batch((9, 4), 211)
    expected = theirs(input_ids, attention_mask=mask.long(), output_attentions=True).attentions
    for actual, wanted in zip(ours.encoder.attention_maps(input_ids, mask), expected, strict=True):
        assert (actual - wanted).abs().max() < 1e-12


def test_padding_changes_nothing():
    model = convert(huggingface_model())
    short, _ = padded_batch((5, 5), 211)
    long = torch.cat([short, torch.ones(2, 30, dtype=torch.long)], dim=1)
    assert (model(long)[:, :5] - model(short)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)], ids=str
)
def test_full_blocks_need_no_mask(monkeypatch, dtype, tolerance):
    """has_padding=False equals the masked form to rounding, states and gradients, and passes no mask on."""
    encoder = convert(huggingface_model()).eval().encoder
    encoder = encoder if dtype == torch.float64 else encoder.float()
    input_ids, mask = padded_batch((128, 128, 128), 211)
    masks, results = helpers.record_attention_masks(monkeypatch), []
    for form in (dict(has_padding=False), dict(attention_mask=mask), dict()):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden = encoder(input_ids, **form)
        hidden.square().sum().backward()
        results.append((hidden, encoder.layers[0].attention.query.weight.grad, encoder.embeddings.word.weight.grad))
    assert [each is None for each in masks] == [True] * 2 + [False] * 4
    for actual, expected, without in zip(*results):
        assert relative_norm(actual, expected) < tolerance and torch.equal(expected, without) and expected.norm() > 0


def test_a_sequence_of_padding_alone_stays_finite():
    model = convert(huggingface_model())
    input_ids = torch.ones(2, 6, dtype=torch.long)
    input_ids[0, :3] = 9
    assert model(input_ids).isfinite().all()
    assert all(maps.isfinite().all() for maps in model.encoder.attention_maps(input_ids))


def test_invalid_input_is_refused():
    model = MaskedLM(EncoderConfig(1, 8, 2, 8, 20)).eval()
    model(torch.full((1, 512), 9))
    with pytest.raises(ModelError, match="513 tokens is longer than the model's maximum of 512"):
        model(torch.full((1, 513), 9))
    with pytest.raises(ModelError, match="input_ids must be integers"):
        model(torch.zeros(1, 5))
    input_ids, mask = padded_batch((5, 2), 20)
    assert torch.equal(model(input_ids, mask.long()), model(input_ids, mask))
    with pytest.raises(ModelError, match="an additive float mask is not"):
        model(input_ids, torch.where(mask, 0.0, -1e9))


def test_initial_values():
    """N(0, 0.02) for matrices at width 768, 0 for biases and padding rows, 1 and 0 for LayerNorms."""
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(1, 768, 12, 3072, 1000))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == ("norm" in name and name.endswith("weight"))).all(), name
        else:
            assert 0.0198 < parameter.std() < 0.0202, name
    for table in (model.encoder.embeddings.word, model.encoder.embeddings.position):
        assert (table.weight[1] == 0).all() and (table.weight[2:].abs().sum(dim=1) > 0).all()
    narrow = MaskedLM(EncoderConfig(1, 48, 4, 3072, 1000))
    assert 0.079 < narrow.encoder.layers[0].feed_forward.feed.weight.std() < 0.081  # 0.02 sqrt(768 / 48)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(1, 16, 2, 16, 30, dropout=0.3))
    input_ids = torch.full((1, 4), 9)
    assert not torch.equal(model(input_ids), model(input_ids))
    model.eval()
    assert torch.equal(model(input_ids), model(input_ids))
