"""The fused loss against the plain form of equation (13) and against float64; what it computes and what it holds."""

import inspect
import itertools
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from losses import DIRECTIONS, IGNORE_INDEX, distillation_loss, fused, fused_distillation_loss, products
from tests.helpers import DEVICE, relative_norm

pytestmark = pytest.mark.gpu

VOCAB_SIZE, STRIDE = 211, 256  # one token's logits take the memory of 256
DIVERGENCES = list(itertools.product(DIRECTIONS, (1.0, 2.0)))
TENSORS = list(inspect.signature(fused_distillation_loss).parameters)[:10]  # student_state … teacher_hidden


class Case(SimpleNamespace):
    """The tensors of the loss by their names, random, on DEVICE."""

    @classmethod
    def random(
        cls,
        num_tokens=37,
        dtype=torch.float64,
        padding=0.3,
        masked=0.3,
        seed=0,
        vocab_size=VOCAB_SIZE,
        widths=(24, 40),  # of student and teacher
    ):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape, deviation=1.0):
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * deviation).to(dtype)

        def model(width):
            return draw(num_tokens, width), draw(vocab_size, width, deviation=1.5 / width**0.5), draw(vocab_size)

        real = torch.rand(num_tokens, generator=generator) >= padding
        chosen = (torch.rand(num_tokens, generator=generator) < masked) & real
        labels = torch.where(chosen, torch.randint(vocab_size, (num_tokens,), generator=generator), IGNORE_INDEX)
        hidden = (draw(num_tokens, widths[0]) for _ in range(2))
        tensors = *model(widths[0]), *model(widths[1]), labels, real, *hidden
        return cls(**{name: tensor.to(DEVICE) for name, tensor in zip(TENSORS, tensors, strict=True)})

    @property
    def differentiated(self):
        return [self.student_state, self.student_decoder, self.student_bias, self.student_hidden]

    def leaves(self, dtype=None):
        """A copy whose student tensors require gradients."""

        def copy(tensor):
            return tensor.detach().to(dtype if tensor.is_floating_point() else None).clone()

        copied = Case(**{name: copy(tensor) for name, tensor in vars(self).items()})
        for tensor in copied.differentiated:
            tensor.requires_grad_()
        return copied

    def fused(self, chunk=8, **settings):
        """The fused loss with this number of tokens per chunk."""
        autocast = torch.is_autocast_enabled(DEVICE.type)
        dtype = torch.get_autocast_dtype(DEVICE.type) if autocast else self.student_state.dtype
        return fused_distillation_loss(**vars(self), chunk_bytes=chunk * 2 * STRIDE * dtype.itemsize, **settings)

    def plain(self, **settings):
        """The reference, from logits."""
        student_logits = F.linear(self.student_state, self.student_decoder, self.student_bias)
        teacher_logits = F.linear(self.teacher_state, self.teacher_decoder, self.teacher_bias)
        tensors = student_logits, teacher_logits, self.student_hidden, self.teacher_hidden, self.labels, self.real
        return distillation_loss(*tensors, **settings)


def assert_equal(case, tolerance, chunk=8, compiled=False, **settings):
    """Total, sums, counts and every gradient of the fused loss equal those of the plain one in float64."""
    one, other = case.leaves(), case.leaves(torch.float64)
    total, terms = one.fused(chunk, compiled=compiled, **settings)
    expected = other.plain(**settings)
    assert total.dtype == one.student_state.dtype
    assert total.item() == pytest.approx(expected.total().item(), rel=tolerance, abs=1e-30)
    for actual, wanted in zip(terms, expected, strict=True):
        assert actual.item() == pytest.approx(wanted.item(), rel=tolerance, abs=tolerance) and not actual.requires_grad
    total.backward()
    expected.total().backward()
    assert_equal_gradients(one, other, tolerance)


def assert_equal_gradients(one, other, tolerance):
    for actual, wanted in zip(one.differentiated, other.differentiated, strict=True):
        assert actual.grad.dtype == actual.dtype
        equal = torch.equal(actual.grad, wanted.grad)  # as zeros are
        assert equal or relative_norm(actual.grad, wanted.grad) < tolerance


@pytest.mark.parametrize(("direction", "temperature"), DIVERGENCES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_it_is_equation_13(direction, temperature, dtype, tolerance):
    case = Case.random(dtype=dtype)
    assert (~case.real).any() and 0 < (case.labels != IGNORE_INDEX).sum() < case.real.sum()
    assert_equal(case, tolerance, direction=direction, temperature=temperature)


SHAPES = [dict(num_tokens=number, padding=0.0) for number in (37, 40)]  # not a multiple of the chunk, and one
SHAPES += [dict(num_tokens=number) for number in (0, 5)]  # none, and fewer than a chunk
SHAPES += [dict(num_tokens=1, padding=0.0, masked=masked) for masked in (0.0, 1.0)]
SHAPES += [dict(masked=0.0), dict(masked=1.0, padding=0.0), dict(padding=1.0)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_number_of_tokens(shape):
    assert_equal(Case.random(**shape), 1e-10, temperature=2.0)


def test_a_masked_token_that_is_not_real_counts_in_equation_12_only():
    case = Case.random()
    case.labels[~case.real] = 3
    assert_equal(case, 1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 37, 1000])
def test_every_chunk_size_gives_the_same_loss(chunk):
    assert_equal(Case.random(), 1e-10, chunk=chunk)


def test_blocks_smaller_than_a_chunk(monkeypatch):
    monkeypatch.setitem(fused.BLOCK_BYTES, DEVICE.type, 3 * STRIDE * 8)
    assert_equal(Case.random(), 1e-10, chunk=11)


@pytest.mark.parametrize(
    ("size", "vocab_size", "parts"),
    [(1, 211, [211]), (64, 211, [192, 19]), (64, 192, [192]), (64, 7, [7]), (64, 32005, [32000, 5])],
)
def test_products_in_two_parts_of_the_vocabulary(monkeypatch, size, vocab_size, parts):
    """As a GPU computes them."""
    monkeypatch.setitem(products.PRODUCT_COLUMNS, DEVICE.type, size)
    found = products.parts_of_vocabulary(vocab_size, DEVICE)
    assert [part.stop - part.start for part in found] == parts
    assert torch.equal(torch.cat([torch.arange(vocab_size)[part] for part in found]), torch.arange(vocab_size))
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-6)):
        assert_equal(Case.random(11, dtype, vocab_size=min(vocab_size, 1000)), tolerance)


@pytest.mark.parametrize(("direction", "temperature"), DIVERGENCES)
def test_gradcheck(direction, temperature):
    case = Case.random(num_tokens=5, vocab_size=7, masked=0.6).leaves()
    assert (case.labels != IGNORE_INDEX).any()

    def total(state, decoder, bias, hidden):
        changed = dict(student_state=state, student_decoder=decoder, student_bias=bias, student_hidden=hidden)
        return Case(**vars(case) | changed).fused(
            chunk=2, direction=direction, temperature=temperature, weights=(0.2, 0.5, 0.3)
        )[0]

    assert torch.autograd.gradcheck(total, case.differentiated)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_given_weights_counts_and_output_gradient(compiled):
    case = Case.random(num_tokens=24)
    one, other = case.leaves(), case.leaves()
    total, _ = one.fused(weights=(0.1, 0.7, 0.2), real_tokens=100, masked_tokens=torch.tensor(50), compiled=compiled)
    expected = other.plain().total((0.1, 0.7, 0.2), 100, 50)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    (total * -3.7).backward(), (expected * -3.7).backward()
    assert_equal_gradients(one, other, 1e-12)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (0.0, 1.0, 3.0)])
def test_the_terms_do_not_depend_on_the_weights(weights):
    case = Case.random()
    total, terms = case.fused(weights=weights)
    assert terms == case.fused()[1] and all(term > 0 for term in terms)
    assert total.item() == pytest.approx(case.plain().total(weights).item(), rel=1e-12)


@pytest.mark.parametrize("loss_scale", [65536.0, torch.tensor(0.25)])
@pytest.mark.parametrize("output_gradient", [1.0, 65536.0])
def test_the_loss_scale_changes_nothing_without_rounding(loss_scale, output_gradient):
    one, other = Case.random().leaves(), Case.random().leaves()
    total, _ = one.fused(loss_scale=loss_scale)
    assert torch.equal(total, other.fused()[0])
    (total * output_gradient).backward(), (other.plain().total() * output_gradient).backward()
    assert_equal_gradients(one, other, 1e-12)


@pytest.mark.parametrize(("direction", "temperature"), DIVERGENCES)
def test_compiled_equals_eager(direction, temperature):
    torch._dynamo.reset()  # else the limit of compilations of one function is reached
    torch._dynamo.utils.counters.clear()  # of what earlier tests compiled
    case = Case.random(num_tokens=40, dtype=torch.float32, padding=0.1)
    assert_equal(case, 2e-6, compiled=True, direction=direction, temperature=temperature)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2  # with and without labels


def errors(case, form, dtype, scale=1.0, compiled=False, **settings):
    """Relative errors of the total and of each gradient in half precision, against float64."""
    truth = case.leaves(torch.float64)
    expected = truth.plain(**settings).total()
    expected.backward()
    half = case.leaves(torch.float32)
    with torch.autocast(DEVICE.type, dtype):
        if form == "plain":
            total = half.plain(**settings).total()
        else:
            total, _ = half.fused(loss_scale=scale, compiled=compiled, **settings)
    (total * scale).backward()
    pairs = zip(half.differentiated, truth.differentiated, strict=True)
    gradients = [relative_norm(actual.grad.double() / scale, wanted.grad) for actual, wanted in pairs]
    return [abs(total.item() / expected.item() - 1), *gradients]


HALF = [(dtype, *divergence, False) for dtype in (torch.bfloat16, torch.float16) for divergence in DIVERGENCES]
HALF += [(torch.bfloat16, DIRECTIONS[0], 2.0, True), (torch.float16, DIRECTIONS[1], 1.0, True)]


@pytest.mark.parametrize("columns", [1, 64])
@pytest.mark.parametrize(("dtype", "direction", "temperature", "compiled"), HALF)
def test_half_precision_is_no_worse_than_the_plain_form(monkeypatch, dtype, direction, temperature, compiled, columns):
    """The error against float64 is at most 1.5 times that of the plain form in the same precision; over 64 chunks."""
    torch._dynamo.reset()
    monkeypatch.setitem(products.PRODUCT_COLUMNS, DEVICE.type, columns)
    scale = 1024.0 if dtype == torch.float16 else 1.0
    settings = dict(direction=direction, temperature=temperature)
    case = Case.random(num_tokens=512, dtype=torch.float32, padding=0.0)
    plain = errors(case, "plain", dtype, scale, **settings)
    ours = errors(case, "fused", dtype, scale, compiled=compiled, **settings)
    resolution = torch.finfo(dtype).eps
    assert ours[0] < max(1.5 * plain[0], resolution)  # in a sum of many terms, errors cancel by chance
    for ours_error, plain_error in zip(ours[1:], plain[1:], strict=True):
        assert ours_error <= 1.5 * plain_error + 1e-7 and 0 < plain_error < 20 * resolution


def test_the_loss_scale_saves_small_gradients_in_fp16():
    """At N = 8,192 one token's gradient is below fp16's range, so the GradScaler's scale must be applied first.

    On a GPU at the real size. No gradient overflows at the GradScaler's initial scale.
    """
    sizes = dict(vocab_size=32005, widths=(768, 768)) if DEVICE.type == "cuda" else dict(vocab_size=1005)
    case = Case.random(num_tokens=8192, dtype=torch.float32, padding=0.0, masked=0.15, **sizes)
    truth = case.leaves(torch.float64)
    truth.plain().total().backward()

    def errors_unscaled(scale_first):
        half = case.leaves()
        optimiser = torch.optim.SGD(half.differentiated, lr=0.0)
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=65536.0)
        loss_scale = scaler.scale(torch.ones((), device=DEVICE)) if scale_first else 1.0
        with torch.autocast(DEVICE.type, torch.float16):
            total, _ = half.fused(chunk=512, loss_scale=loss_scale)
        scaler.scale(total).backward()
        scaler.unscale_(optimiser)
        scaler.step(optimiser)
        scaler.update()
        assert scaler.get_scale() == 65536.0  # it would be half of it after a gradient that is not finite
        return [relative_norm(one.grad, two.grad) for one, two in zip(half.differentiated, truth.differentiated)]

    before_rounding, after_rounding = errors_unscaled(True), errors_unscaled(False)
    assert max(before_rounding) < 2e-3 and after_rounding[1] > 10 * before_rounding[1]


@pytest.mark.parametrize(("direction", "temperature"), DIVERGENCES)
def test_extreme_logits_are_finite(direction, temperature):
    case = Case.random(dtype=torch.float32)
    case.student_state *= 1e4 / (case.student_state @ case.student_decoder.T).abs().max()
    case.teacher_state *= 1e4 / (case.teacher_state @ case.teacher_decoder.T).abs().max()
    case = case.leaves()
    total, terms = case.fused(direction=direction, temperature=temperature)
    total.backward()
    assert total.isfinite() and terms.soft_label > 1e3
    assert all(tensor.grad.isfinite().all() for tensor in case.differentiated)


@pytest.mark.parametrize(("direction", "temperature"), DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_student_equal_to_its_teacher_gets_no_gradient(direction, temperature, dtype):
    case = Case.random(dtype=torch.float32)
    case.teacher_state, case.teacher_decoder = case.student_state, case.student_decoder
    case.teacher_bias, case.teacher_hidden = case.student_bias, case.student_hidden
    case = case.leaves()
    with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
        total, terms = case.fused(direction=direction, temperature=temperature, weights=(0.7, 0.3, 0.0))
    total.backward()
    assert terms.soft_label.abs() < 1e-5 and terms.cosine.abs() < 1e-5 and terms.mlm > 1
    assert all(tensor.grad.abs().max() < 1e-7 for tensor in case.differentiated)


def test_padding_is_never_read():
    case = Case.random()
    expected, other = case.fused()[0], case.leaves()
    with torch.no_grad():
        for tensor in (other.student_state, other.student_hidden, other.teacher_state, other.teacher_hidden):
            tensor[~case.real] = float("nan")
    total, _ = other.fused()
    total.backward()
    assert torch.equal(total, expected)
    assert (other.student_state.grad[~case.real] == 0).all() and (other.student_hidden.grad[~case.real] == 0).all()
    assert all(tensor.grad.isfinite().all() for tensor in other.differentiated)


class Watch(TorchDispatchMode):
    """Counts matrix products, and finds the largest tensor that any operation returns, in bytes."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


def test_the_logits_of_all_tokens_are_never_held():
    case, logits = Case.random(num_tokens=4096, dtype=torch.float32), 4096 * VOCAB_SIZE * 4
    with Watch() as ours:
        case.leaves().fused(chunk=16)[0].backward()
    with Watch() as plain:
        case.leaves().plain().total().backward()
    assert ours.largest < logits / 4 and plain.largest >= logits  # so this would detect them


def test_memory_does_not_grow_with_the_number_of_tokens():
    largest = []
    for num_tokens in (1024, 8192):
        case = Case.random(num_tokens=num_tokens, dtype=torch.float32).leaves()
        with Watch() as watch, torch.no_grad():
            case.fused(chunk=700)
        largest.append(watch.largest)
    assert largest[1] <= max(largest[0], 8192 * 40 * 4)  # of the states


def test_evaluation_computes_no_gradient():
    case = Case.random(num_tokens=40, padding=0.0, vocab_size=192)  # one product each also on a GPU
    with Watch() as watch, torch.no_grad():
        total, terms = case.leaves().fused(chunk=10)
    assert watch.products == 4 * 2 and not total.requires_grad
    assert torch.equal(total, case.leaves().fused(chunk=10)[0]) and terms.mlm > 0
    with Watch() as watch:
        case.leaves().fused(chunk=10)[0].backward()
    assert watch.products == 4 * 4


def test_only_tensors_that_require_a_gradient_get_one():
    one, other = (Case.random(num_tokens=40, padding=0.0, vocab_size=192).leaves() for _ in range(2))
    one.student_decoder.requires_grad_(False)
    with Watch() as watch:
        one.fused(chunk=10)[0].backward()
    other.plain().total().backward()
    assert watch.products == 4 * 3 and one.student_decoder.grad is None
    for name in ("student_state", "student_bias", "student_hidden"):
        assert relative_norm(getattr(one, name).grad, getattr(other, name).grad) < 1e-12


def test_backward_twice_gives_twice_the_gradient():
    case = Case.random().leaves()
    total, _ = case.fused()
    total.backward(retain_graph=True)
    once = [tensor.grad.clone() for tensor in case.differentiated]
    total.backward()
    for tensor, first in zip(case.differentiated, once, strict=True):
        assert torch.allclose(tensor.grad, 2 * first, rtol=1e-14)


def test_copies_to_the_device_keep_their_values():
    """Asynchronous copies, from pinned memory that is soon reused; a tensor that is there already is not copied."""
    tensors = [torch.arange(1000) + number for number in range(100)]
    copies = [fused.to_device(tensor, DEVICE) for tensor in tensors]
    for tensor, copy in zip(tensors, copies, strict=True):
        assert copy.device.type == DEVICE.type and torch.equal(copy.cpu(), tensor)
        assert fused.to_device(copy, copy.device) is copy


OTHER_VOCABULARY = dict(teacher_decoder=torch.zeros(9, 40), teacher_bias=torch.zeros(9))
WRONG = [
    (dict(direction="reverse"), "direction must be student-teacher or teacher-student, not 'reverse'"),
    (dict(temperature=0.0), "temperature must be above 0"),
    (dict(student_decoder=torch.zeros(VOCAB_SIZE, 25)), "student_decoder (211, 25)"),
    (dict(teacher_bias=torch.zeros(VOCAB_SIZE + 1)), "teacher_bias (212,)"),
    (OTHER_VOCABULARY, "The student's vocabulary has 211 tokens, the teacher's 9"),
    (dict(teacher_state=torch.zeros(36, 40)), "must have one row per token"),
    (dict(labels=torch.zeros(36, dtype=torch.long)), "must have one row per token"),
    (dict(teacher_hidden=None), "give both, or neither"),
]


@pytest.mark.parametrize(("changed", "message"), WRONG)
def test_invalid_arguments_are_refused(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fused_distillation_loss(**{**vars(Case.random()), **changed})


def test_without_last_hidden_states_the_cosine_term_is_0():
    case = Case.random()
    total, terms = Case(**vars(case) | dict(student_hidden=None, teacher_hidden=None)).fused()
    expected = case.plain().total((0.5, 0.0, 0.2))
    assert terms.cosine == 0 and total.item() == pytest.approx(expected.item(), rel=1e-12)
