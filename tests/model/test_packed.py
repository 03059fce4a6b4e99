"""The encoder on packed sequences, without padding: equal to the padded form, and to transformers one at a time."""

import inspect
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from model import EncoderConfig, MaskedLM, ModelError, encode_packed
from model.attention import scaled_dot_product
from model.packed import has_varlen_kernel, packed_attention
from model.runs import Packing
from tests.helpers import DEVICE, assert_close, convert, gradients, huggingface_model, padded_batch, relative_norm

SEQLENS = {
    "unsorted": (9, 4, 9, 1, 30, 4),
    "sorted": (1, 2, 2, 2, 17, 17, 40),
    "equal": (7, 7, 7),
    "one sequence": (13,),
    "one token": (1,),
    "sequences of one token": (1, 1, 1, 1),
    "the longest": (512, 1, 512),
    "neighbours": (30, 31, 31, 33, 29, 30, 30, 32, 8, 9, 7),
}
WANTED = {  # the positions whose states are asked for
    "all tokens": lambda seqlens: None,
    "first only": lambda seqlens: [range(1)] * len(seqlens),
    "inner": lambda seqlens: [range(1, n - 1) if n > 1 else [0] for n in seqlens],  # of two tokens none
    "uneven": lambda seqlens: [[0, *range(length // 2, length, 1 + i % 3)] for i, length in enumerate(seqlens)],
}


@pytest.fixture(scope="module")
def theirs():
    return huggingface_model()


@pytest.fixture(scope="module")
def ours(theirs):
    return convert(theirs).eval()


def batch(seqlens, device="cpu"):
    """Random sequences -> padded (B, n), mask (B, n), packed (T,)"""
    input_ids, mask = padded_batch(seqlens, 211)
    return tuple(tensor.to(device) for tensor in (input_ids, mask, input_ids[mask]))


def chosen(mask, wanted, seqlens):
    """The rows of (B, n) that are wanted, in the order of the sequences."""
    positions = WANTED[wanted](seqlens)
    if positions is None:
        return mask
    pairs = [(i, position) for i, each in enumerate(positions) for position in each]
    return tuple(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T)


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("name", SEQLENS)
@torch.no_grad()
def test_packed_equals_padded(theirs, dtype, tolerance, name, wanted):
    encoder = convert(theirs).eval().to(DEVICE, dtype).encoder
    padded, mask, packed = batch(SEQLENS[name], DEVICE)
    hidden = encode_packed(encoder, packed, SEQLENS[name], WANTED[wanted](SEQLENS[name]))
    expected = encoder(padded, mask)
    expected = expected[chosen(mask, wanted, SEQLENS[name])]
    assert hidden.shape == expected.shape and hidden.dtype == dtype
    assert relative_norm(hidden, expected) < tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("name", ["neighbours", "equal", "the longest"])
@torch.no_grad()
def test_packed_in_bf16_is_no_worse_than_padded(theirs, name, wanted):
    """The error against float64 is at most 1.5 times that of the padded form in bf16."""
    exact, rounded = convert(theirs).eval().to(DEVICE).encoder, convert(theirs).eval().to(DEVICE).float().encoder
    padded, mask, packed = batch(SEQLENS[name], DEVICE)
    expected = exact(padded, mask)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        hidden = encode_packed(rounded, packed, SEQLENS[name], WANTED[wanted](SEQLENS[name]))
        other = rounded(padded, mask)
    rows = chosen(mask, wanted, SEQLENS[name])
    error = relative_norm(hidden, expected[rows])
    assert 1e-4 < error <= 1.5 * relative_norm(other[rows], expected[rows])


@pytest.mark.gpu
@torch.no_grad()
def test_no_state_is_wanted(theirs):
    encoder = convert(theirs).eval().to(DEVICE, torch.bfloat16).encoder
    assert encode_packed(encoder, torch.tensor([5, 6, 5, 6], device=DEVICE), (2, 2), [[], []]).shape == (0, 48)


@pytest.mark.parametrize("name", SEQLENS)
@torch.no_grad()
def test_packed_equals_transformers_one_sequence_at_a_time(theirs, ours, name):
    _, _, packed = batch(SEQLENS[name])
    hidden = encode_packed(ours.encoder, packed, SEQLENS[name])
    for sequence, states in zip(packed.split(SEQLENS[name]), hidden.split(SEQLENS[name]), strict=True):
        assert (states - theirs.roberta(sequence[None]).last_hidden_state[0]).abs().max() < 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["unsorted", "equal", "one sequence", "neighbours"])
def test_gradients_are_those_of_the_padded_form(theirs, name):
    encoder = convert(theirs).eval().to(DEVICE).encoder
    padded, mask, packed = batch(SEQLENS[name], DEVICE)
    weights = torch.randn(len(packed), 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    found = []
    for hidden in (encode_packed(encoder, packed, SEQLENS[name]), encoder(padded, mask)[mask]):
        encoder.zero_grad()
        (hidden * weights).sum().backward()
        found.append(gradients(encoder))
    assert_close(*found, 1e-12, zero=1e-10)
    assert found[1]["embeddings.word.weight"].norm() > 0


@pytest.mark.parametrize("seqlens", [(9, 4, 9, 1), (6, 6, 6), (9, 10, 10, 8)], ids=str)
@torch.no_grad()
def test_no_sequence_attends_to_another(ours, seqlens):
    _, _, packed = batch(seqlens)
    before = encode_packed(ours.encoder, packed, seqlens).split(seqlens)
    for changed in range(len(seqlens)):
        other = [(ids + 5) % 200 + 7 if i == changed else ids for i, ids in enumerate(packed.split(seqlens))]
        after = encode_packed(ours.encoder, torch.cat(other), seqlens).split(seqlens)
        differences = [(one - two).abs().max() for one, two in zip(before, after)]
        assert differences.pop(changed) > 1e-3 and max(differences) < 1e-12


def test_no_gradient_reaches_another_sequence(ours):
    _, _, packed = batch((5, 3, 3))
    summed = []  # word and position embeddings, before their LayerNorm
    handle = ours.encoder.embeddings.norm.register_forward_hook(lambda _, inputs, output: summed.append(inputs[0]))
    hidden = encode_packed(ours.encoder, packed, (5, 3, 3))
    handle.remove()
    (gradient,) = torch.autograd.grad(hidden[5:8].square().sum(), summed)
    assert gradient.reshape(11, 48).norm(dim=1).nonzero().flatten().tolist() == [5, 6, 7]


@torch.no_grad()
def test_a_literal_pad_token_has_the_positions_of_transformers(theirs, ours):
    """A <pad> within a sequence takes no position; unlike padding, it is attended to."""
    sequence, other = torch.tensor([5, 9, 1, 17, 1, 1, 30, 6]), torch.tensor([5, 40, 41, 6])
    expected = theirs.roberta(sequence[None], attention_mask=torch.ones(1, 8)).last_hidden_state[0]
    hidden = encode_packed(ours.encoder, torch.cat([other, sequence, other]), (4, 8, 4))
    assert (hidden[4:12] - expected).abs().max() < 1e-12
    assert (hidden[:4] - theirs.roberta(other[None]).last_hidden_state[0]).abs().max() < 1e-12
    assert (hidden[:4] - hidden[12:]).abs().max() < 1e-12


def test_a_sequence_longer_than_the_positions_is_refused():
    encoder = MaskedLM(EncoderConfig(1, 8, 2, 8, 20)).eval().encoder
    assert encode_packed(encoder, torch.full((1024,), 9), (512, 512)).shape == (1024, 8)  # together they may be longer
    with pytest.raises(ModelError, match="513 tokens is longer than the model's maximum of 512"):
        encode_packed(encoder, torch.full((520,), 9), (7, 513))


def test_dropout_acts_in_training_only_also_on_the_attention():
    torch.manual_seed(0)
    encoder = MaskedLM(EncoderConfig(2, 16, 2, 16, 30, dropout=0.3)).encoder
    attention, hidden, input_ids = encoder.layers[0].attention, torch.randn(1, 6, 16), torch.arange(7, 19)
    for training in (True, False):
        encoder.train(training)
        one, other = (encode_packed(encoder, input_ids, (4, 4, 3, 1)) for _ in range(2))
        assert torch.equal(one, other) != training
        one, other = (
            packed_attention(attention, hidden, hidden, Packing((4, 2), (4, 2), hidden.device)) for _ in range(2)
        )
        assert torch.equal(one, other) != training  # no other dropout than equation (5)'s


def test_packed_attention_is_equations_5_and_6_of_each_sequence(ours):
    torch.manual_seed(0)
    seqlens, attention = (3, 1, 1, 5, 3), ours.encoder.layers[0].attention
    packing = Packing(seqlens, seqlens, torch.device("cpu"))
    hidden = torch.randn(1, 13, 48, dtype=torch.float64)
    expected = []
    for states in hidden.split(seqlens, dim=1):
        heads, _ = scaled_dot_product(attention.queries(states), attention.keys(states), attention.values(states))
        expected.append(attention.out(attention.concatenate_heads(heads)))
    actual = packed_attention(attention, hidden, hidden, packing)
    assert (actual - torch.cat(expected, dim=1)).abs().max() < 1e-12


def varlen_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What PyTorch's varlen_attn computes on a GPU, one sequence after the other."""
    results = []
    for (q_start, q_stop), (k_start, k_stop) in zip(*(pairwise(bounds.tolist()) for bounds in (cu_seq_q, cu_seq_k))):
        assert q_stop - q_start <= max_q and k_stop - k_start <= max_k
        parts = query[q_start:q_stop], key[k_start:k_stop], value[k_start:k_stop]  # (n, J, d_h / J)
        results.append(F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in parts)).transpose(0, 1))
    return torch.cat(results)


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("name", SEQLENS)
@torch.no_grad()
def test_the_kernel_for_sequences_of_varying_lengths(monkeypatch, ours, name, wanted):
    """How it is called; the kernel itself runs on a GPU only, in test_packed_in_bf16_is_no_worse_than_padded."""
    _, _, ids = batch(SEQLENS[name])
    expected = encode_packed(ours.encoder, ids, SEQLENS[name], WANTED[wanted](SEQLENS[name]))
    calls = Mock(side_effect=varlen_reference)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", calls)
    monkeypatch.setattr("model.packed.has_varlen_kernel", lambda queries, dropout: True)
    assert (
        relative_norm(encode_packed(ours.encoder, ids, SEQLENS[name], WANTED[wanted](SEQLENS[name])), expected) < 1e-12
    )
    assert all(bounds.dtype == torch.int32 for call in calls.call_args_list for bounds in call.args[3:5])
    parameters = list(inspect.signature(varlen_attn).parameters)
    assert parameters[:7] == list(inspect.signature(varlen_reference).parameters)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [({}, True), (dict(dtype=torch.float16), True), (dict(dtype=torch.float32), False), (dict(is_cuda=False), False)]
    + [(dict(dropout=0.1), False), (dict(capability=(7, 5)), False), (dict(size=12), False), (dict(size=264), False)],
    ids=str,
)
def test_when_that_kernel_is_used(monkeypatch, changed, expected):
    case = dict(dtype=torch.bfloat16, is_cuda=True, dropout=0.0, capability=(8, 0), size=64) | changed
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: case["capability"])
    queries = Mock(dtype=case["dtype"], is_cuda=case["is_cuda"], shape=(12, 9, case["size"]))
    assert has_varlen_kernel(queries, case["dropout"]) == expected
