"""The fused loss against the plain one of equation (13), against float64, and against what it must never do."""

import itertools
import multiprocessing
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from losses import DIRECTIONS, IGNORE_INDEX, distillation_loss, fused, fused_distillation_loss
from model import EncoderConfig, MaskedLM, initialise_student
from tests.helpers import relative_norm

WORDS, ROW = 211, 256  # a row of logits takes the memory of 256
MANNERS = list(itertools.product(DIRECTIONS, (1.0, 2.0)))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@dataclass
class Case:
    """Random states of a student of width 24 and a teacher of width 40, and what goes with them."""

    student_state: torch.Tensor
    student_decoder: torch.Tensor
    student_bias: torch.Tensor
    teacher_state: torch.Tensor
    teacher_decoder: torch.Tensor
    teacher_bias: torch.Tensor
    labels: torch.Tensor
    real: torch.Tensor
    student_hidden: torch.Tensor
    teacher_hidden: torch.Tensor

    @classmethod
    def random(cls, num_tokens=37, dtype=torch.float64, padding=0.3, masked=0.3, seed=0, words=WORDS):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape, deviation=1.0):
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * deviation).to(dtype)

        real = torch.rand(num_tokens, generator=generator) >= padding
        chosen = (torch.rand(num_tokens, generator=generator) < masked) & real
        labels = torch.where(chosen, torch.randint(words, (num_tokens,), generator=generator), IGNORE_INDEX)
        return cls(
            draw(num_tokens, 24), draw(words, 24, deviation=0.3), draw(words),
            draw(num_tokens, 40), draw(words, 40, deviation=0.3), draw(words),
            labels, real, draw(num_tokens, 24), draw(num_tokens, 24),
        )  # fmt: skip

    @property
    def differentiated(self):
        return [self.student_state, self.student_decoder, self.student_bias, self.student_hidden]

    def leaves(self, dtype=None, device=None):
        """A copy whose student's tensors ask for gradients."""
        copied = {
            name: tensor.detach().to(device, dtype if tensor.is_floating_point() else None).clone()
            for name, tensor in vars(self).items()
        }
        copied = Case(**copied)
        for tensor in copied.differentiated:
            tensor.requires_grad_()
        return copied

    def fused(self, chunk=8, **settings):
        """The fused loss with so many rows in a chunk."""
        itemsize = torch.get_autocast_dtype("cpu").itemsize if torch.is_autocast_enabled("cpu") else (
            self.student_state.dtype.itemsize)  # fmt: skip
        return fused_distillation_loss(**vars(self), chunk_bytes=chunk * 2 * ROW * itemsize, **settings)

    def plain(self, **settings):
        """The reference, from logits."""
        return distillation_loss(
            F.linear(self.student_state, self.student_decoder, self.student_bias),
            F.linear(self.teacher_state, self.teacher_decoder, self.teacher_bias),
            self.student_hidden, self.teacher_hidden, self.labels, self.real, **settings,
        )  # fmt: skip


def assert_alike(case, tolerance, chunk=8, compiled=False, **settings):
    """Total, sums, counts and every gradient of the fused loss are those of the plain one."""
    one, other = case.leaves(), case.leaves()
    total, terms = one.fused(chunk, compiled=compiled, **settings)
    expected = other.plain(**settings)
    assert total.dtype == expected.total().dtype
    assert total.item() == pytest.approx(expected.total().item(), rel=tolerance, abs=1e-30)
    for actual, wanted in zip(terms, expected, strict=True):
        assert actual.item() == pytest.approx(wanted.item(), rel=tolerance, abs=tolerance)
        assert not actual.requires_grad
    total.backward()
    expected.total().backward()
    for actual, wanted in zip(one.differentiated, other.differentiated, strict=True):
        assert actual.grad.dtype == wanted.grad.dtype
        if wanted.grad.norm() == 0:
            assert actual.grad.norm() == 0
        else:
            assert relative_norm(actual.grad, wanted.grad) < tolerance


# ---- the same as the plain form --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("direction", "temperature"), MANNERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_it_is_equation_13(direction, temperature, dtype, tolerance, device):
    case = Case.random(dtype=dtype).leaves(device=device)
    assert (~case.real).any() and 0 < (case.labels != IGNORE_INDEX).sum() < case.real.sum()
    assert_alike(case, tolerance, direction=direction, temperature=temperature)


SHAPES = {
    "not a multiple of the chunk": dict(num_tokens=37, padding=0.0),
    "a multiple of the chunk": dict(num_tokens=40, padding=0.0),
    "a chunk larger than all": dict(num_tokens=5),
    "one token": dict(num_tokens=1, padding=0.0, masked=0.0),
    "one token, masked": dict(num_tokens=1, padding=0.0, masked=1.0),
    "no token": dict(num_tokens=0),
    "no masked token": dict(masked=0.0),
    "every token masked": dict(masked=1.0, padding=0.0),
    "all padding": dict(padding=1.0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_of_tokens(shape):
    assert_alike(Case.random(**SHAPES[shape]), 1e-10, temperature=2.0)


def test_a_masked_token_that_is_not_real_counts_for_equation_12_alone():
    case = Case.random()
    case.labels[~case.real] = 3
    assert_alike(case, 1e-10)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 37, 1000])
def test_every_chunk_size_gives_the_same(chunk):
    assert_alike(Case.random(), 1e-10, chunk=chunk)


def test_blocks_smaller_than_a_chunk(monkeypatch):
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", 3 * ROW * 8)
    assert_alike(Case.random(), 1e-10, chunk=11)


@pytest.mark.parametrize(("direction", "temperature"), MANNERS)
def test_gradcheck(direction, temperature):
    case = Case.random(num_tokens=5, words=7, masked=0.6).leaves()
    assert (case.labels != IGNORE_INDEX).any()

    def total(state, decoder, bias, hidden):
        changed = replace(case, student_state=state, student_decoder=decoder, student_bias=bias, student_hidden=hidden)
        return changed.fused(chunk=2, direction=direction, temperature=temperature, weights=(0.2, 0.5, 0.3))[0]

    assert torch.autograd.gradcheck(total, case.differentiated)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_total_by_another_weighing(compiled):
    """Weights and denominators given by the caller, and a gradient from behind that is not 1."""
    case = Case.random(num_tokens=24)
    one, other = case.leaves(), case.leaves()
    total, _ = one.fused(weights=(0.1, 0.7, 0.2), real_tokens=100, masked_tokens=torch.tensor(50), compiled=compiled)
    expected = other.plain().total((0.1, 0.7, 0.2), 100, 50)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    (total * -3.7).backward(), (expected * -3.7).backward()
    for actual, wanted in zip(one.differentiated, other.differentiated, strict=True):
        assert relative_norm(actual.grad, wanted.grad) < 1e-12


@pytest.mark.parametrize("loss_scale", [65536.0, torch.tensor(0.25)])
@pytest.mark.parametrize("behind", [1.0, 65536.0])
def test_the_loss_scale_changes_nothing_where_nothing_is_rounded(loss_scale, behind):
    one, other = Case.random().leaves(), Case.random().leaves()
    total, _ = one.fused(loss_scale=loss_scale)
    assert torch.equal(total, other.fused()[0])
    (total * behind).backward(), (other.plain().total() * behind).backward()
    for actual, wanted in zip(one.differentiated, other.differentiated, strict=True):
        assert relative_norm(actual.grad, wanted.grad) < 1e-12


@pytest.mark.parametrize(("direction", "temperature"), MANNERS)
def test_compiled_equals_eager(direction, temperature):
    torch._dynamo.reset()  # else the limit of compiled forms of one function is met
    torch._dynamo.utils.counters.clear()  # what earlier tests compiled does not count
    case = Case.random(num_tokens=40, dtype=torch.float32, padding=0.1)
    assert_alike(case, 2e-6, compiled=True, direction=direction, temperature=temperature)
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 2  # with labels and without


# ---- numerics --------------------------------------------------------------------------------------------------


def errors(case, form, dtype, scale=1.0, **settings):
    """Relative errors of the total and of each gradient in half precision, against float64."""
    truth = case.leaves(torch.float64)
    expected = truth.plain(**settings).total()
    expected.backward()
    half = case.leaves(torch.float32)
    with torch.autocast("cpu", dtype):
        if form == "plain":
            total = half.plain(**settings).total()
        else:
            total, _ = half.fused(loss_scale=scale, **settings)
    (total * scale).backward()
    return [abs(total.item() / expected.item() - 1)] + [
        relative_norm(actual.grad.double() / scale, wanted.grad)
        for actual, wanted in zip(half.differentiated, truth.differentiated, strict=True)
    ]


@pytest.mark.parametrize(("direction", "temperature"), MANNERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_the_plain_form(dtype, direction, temperature):
    """Error against float64 at most 1.5 times that of the plain form in the same precision; over 64 chunks."""
    scale = 1024.0 if dtype == torch.float16 else 1.0
    settings = dict(direction=direction, temperature=temperature)
    case = Case.random(num_tokens=512, dtype=torch.float32, padding=0.0)
    plain, ours = (errors(case, form, dtype, scale, **settings) for form in ("plain", "fused"))
    resolution = torch.finfo(dtype).eps
    assert ours[0] < max(1.5 * plain[0], resolution)  # of a number that is a sum of many, errors cancel by chance
    for ours_error, plain_error in zip(ours[1:], plain[1:], strict=True):
        assert ours_error <= 1.5 * plain_error + 1e-7
        assert 0 < plain_error < 20 * resolution


def test_a_real_loss_scale_saves_small_gradients_in_fp16():
    """At N = 8,192 a token's gradient is below what fp16 can hold; the GradScaler's factor must come first."""
    case = Case.random(num_tokens=8192, dtype=torch.float32, padding=0.0, masked=0.15, words=1005)
    truth = case.leaves(torch.float64)
    truth.plain().total().backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)

    def error(loss_scale):
        half = case.leaves()
        with torch.autocast("cpu", torch.float16):
            total, _ = half.fused(chunk=512, loss_scale=loss_scale)
        scaler.scale(total).backward()
        gradient = half.student_decoder.grad / scaler.get_scale()
        return relative_norm(gradient.double(), truth.student_decoder.grad)

    inside, outside = error(scaler.scale(torch.ones(()))), error(1.0)
    assert inside < 2e-3 and outside > 10 * inside


@pytest.mark.parametrize(("direction", "temperature"), MANNERS)
def test_extreme_logits_are_finite(direction, temperature):
    case = Case.random(dtype=torch.float32)
    case.student_state *= 1e4 / (case.student_state @ case.student_decoder.T).abs().max()
    case.teacher_state *= 1e4 / (case.teacher_state @ case.teacher_decoder.T).abs().max()
    case = case.leaves()
    total, terms = case.fused(direction=direction, temperature=temperature)
    total.backward()
    assert total.isfinite() and terms.soft_label > 1e3
    assert all(tensor.grad.isfinite().all() for tensor in case.differentiated)


@pytest.mark.parametrize(("direction", "temperature"), MANNERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_student_equal_to_the_teacher_has_nothing_to_learn(direction, temperature, dtype):
    case = Case.random(dtype=torch.float32)
    case.teacher_state, case.teacher_decoder = case.student_state, case.student_decoder
    case.teacher_bias, case.teacher_hidden = case.student_bias, case.student_hidden
    case = case.leaves()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        total, terms = case.fused(direction=direction, temperature=temperature, weights=(0.7, 0.3, 0.0))
    total.backward()
    assert terms.soft_label.abs() < 1e-5 and terms.cosine.abs() < 1e-5 and terms.mlm > 1
    for tensor in case.differentiated:
        assert tensor.grad.abs().max() < 1e-7


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


# ---- what is computed, and held --------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Counts the matrix products, and finds the largest tensor that any operation gives."""

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


def test_the_logits_are_never_held():
    case = Case.random(num_tokens=4096, dtype=torch.float32)
    logits = 4096 * WORDS * 4
    with Watch() as ours:
        case.leaves().fused(chunk=16)[0].backward()
    with Watch() as plain:
        case.leaves().plain().total().backward()
    assert plain.largest >= logits  # this is how it would be seen
    assert ours.largest < logits / 4


def test_the_memory_does_not_grow_with_the_tokens():
    largest = []
    for num_tokens in (1024, 8192):
        case = Case.random(num_tokens=num_tokens, dtype=torch.float32).leaves()
        with Watch() as watch, torch.no_grad():
            case.fused(chunk=700)
        largest.append(watch.largest)
    states = 8192 * 40 * 4
    assert largest[1] <= max(largest[0], states)


def test_evaluation_computes_no_gradient():
    case = Case.random(num_tokens=40, padding=0.0)
    with Watch() as watch, torch.no_grad():
        total, terms = case.leaves().fused(chunk=10)
    assert watch.products == 4 * 2 and not total.requires_grad
    assert torch.equal(total, case.leaves().fused(chunk=10)[0]) and terms.mlm > 0
    with Watch() as watch:
        case.leaves().fused(chunk=10)[0].backward()
    assert watch.products == 4 * 4


def test_only_what_asks_gets_a_gradient():
    one, other = Case.random(num_tokens=40, padding=0.0).leaves(), Case.random(num_tokens=40, padding=0.0).leaves()
    one.student_decoder.requires_grad_(False)
    with Watch() as watch:
        one.fused(chunk=10)[0].backward()
    other.plain().total().backward()
    assert watch.products == 4 * 3 and one.student_decoder.grad is None
    assert relative_norm(one.student_state.grad, other.student_state.grad) < 1e-12
    assert relative_norm(one.student_bias.grad, other.student_bias.grad) < 1e-12


def test_backward_twice_gives_the_same_twice():
    case = Case.random().leaves()
    total, _ = case.fused()
    total.backward(retain_graph=True)
    once = [tensor.grad.clone() for tensor in case.differentiated]
    total.backward()
    for tensor, first in zip(case.differentiated, once, strict=True):
        assert torch.allclose(tensor.grad, 2 * first, rtol=1e-14)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_host_does_not_wait_for_a_gpu(dtype):
    case = Case.random(num_tokens=64, dtype=torch.float32).leaves(device="cuda")
    case.labels, case.real = case.labels.cpu(), case.real.cpu()
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
    scale = scaler.scale(torch.ones((), device="cuda"))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            total, _ = case.fused(loss_scale=scale)
        scaler.scale(total).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert case.student_decoder.grad.isfinite().all()


# ---- in a model ------------------------------------------------------------------------------------------------

CONFIG = EncoderConfig(4, 24, 2, 48, WORDS, 40, dropout=0.0)


def models(seed=0):
    torch.manual_seed(seed)
    teacher = MaskedLM(CONFIG).eval().requires_grad_(False)
    return initialise_student(teacher, [0, 2]).train(), teacher


def model_inputs(num_texts=6):
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, WORDS, (num_texts, 16), generator=generator)
    real = torch.arange(16) < torch.randint(3, 17, (num_texts, 1), generator=generator)
    labels = torch.where((torch.rand(input_ids.shape, generator=generator) < 0.3) & real, input_ids, IGNORE_INDEX)
    return input_ids.where(real, 1), labels, real


class Step(nn.Module):
    """A student whose forward is the loss, as DistributedDataParallel needs it."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, [teacher]

    def forward(self, input_ids, labels, real, form="fused", **settings):
        (teacher,), student = self.teacher, self.student
        hidden, their_hidden = student.encoder(input_ids, real), teacher.encoder(input_ids, real)
        if form == "plain":
            terms = distillation_loss(student.head(hidden), teacher.head(their_hidden), hidden, their_hidden, labels,
                                      real)  # fmt: skip
            return terms.total()
        total, _ = fused_distillation_loss(
            student.transform(hidden).flatten(0, 1), student.decoder, student.bias,
            teacher.transform(their_hidden).flatten(0, 1), teacher.decoder, teacher.bias,
            labels.flatten(), real.flatten(), hidden.flatten(0, 1), their_hidden.flatten(0, 1), **settings,
        )  # fmt: skip
        return total


def parameter_gradients(student):
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def assert_same_gradients(actual, expected, tolerance):
    for name, gradient in expected.items():
        if not name.endswith("attention.key.bias"):  # zero but for rounding: softmax does not see it
            assert relative_norm(actual[name], gradient) < tolerance, name


def test_the_tied_decoder_gets_the_gradients_of_both_its_uses():
    (one, teacher), (other, _) = models(), models()
    Step(one, teacher)(*model_inputs()).backward()
    Step(other, teacher)(*model_inputs(), form="plain").backward()
    assert_same_gradients(parameter_gradients(one), parameter_gradients(other), 1e-5)


def test_micro_batches_add_up_to_one_batch():
    (one, teacher), (other, _) = models(), models()
    input_ids, labels, real = model_inputs()
    Step(one, teacher)(input_ids, labels, real).backward()
    counts = dict(real_tokens=int(real.sum()), masked_tokens=int((labels != IGNORE_INDEX).sum()))
    for part in zip(input_ids.split(4), labels.split(4), real.split(4)):
        Step(other, teacher)(*part, **counts).backward()
    assert_same_gradients(parameter_gradients(other), parameter_gradients(one), 1e-5)


def test_behind_a_compiled_encoder():
    (one, teacher), (other, _) = models(), models()
    one.encoder.compile(dynamic=False)
    Step(one, teacher)(*model_inputs()).backward()
    Step(other, teacher)(*model_inputs(), form="plain").backward()
    assert_same_gradients(parameter_gradients(one), parameter_gradients(other), 1e-5)


def ddp_worker(rank, folder):
    """One of two processes, with its half of the batch; leaves its gradients in a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    student, teacher = models()
    step = nn.parallel.DistributedDataParallel(Step(student, teacher))
    whole = model_inputs()
    counts = dict(real_tokens=int(whole[2].sum()), masked_tokens=int((whole[1] != IGNORE_INDEX).sum()))
    total = step(*(tensor.split(4)[rank] for tensor in whole), **counts)
    (2 * total).backward()  # the ranks' gradients are averaged, and are to be summed
    torch.save(parameter_gradients(student), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    context = multiprocessing.get_context("spawn")
    world = [context.Process(target=ddp_worker, args=(rank, tmp_path)) for rank in range(2)]
    for process in world:
        process.start()
    student, teacher = models()
    Step(student, teacher)(*model_inputs(), form="plain").backward()
    for process in world:
        process.join(timeout=120)
        assert process.exitcode == 0
    for rank in range(2):
        assert_same_gradients(torch.load(tmp_path / f"{rank}.pt"), parameter_gradients(student), 1e-5)


# ---- what does not fit -----------------------------------------------------------------------------------------

WRONG = {
    "direction": (dict(direction="reverse"), "direction is student-teacher or teacher-student"),
    "temperature": (dict(temperature=0.0), "temperature must be above 0"),
    "widths": (dict(student_decoder=torch.zeros(WORDS, 25)), "student_decoder (211, 25)"),
    "bias": (dict(teacher_bias=torch.zeros(WORDS + 1)), "teacher_bias (212,)"),
    "vocabularies": (
        dict(teacher_decoder=torch.zeros(9, 40), teacher_bias=torch.zeros(9)),
        "The student has 211 words, the teacher 9",
    ),
    "rows": (dict(teacher_state=torch.zeros(36, 40)), "a row a token"),
    "labels": (dict(labels=torch.zeros(36, dtype=torch.long)), "a row a token"),
    "half of the cosine": (dict(teacher_hidden=None), "give both, or neither"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused(wrong):
    changed, sentence = WRONG[wrong]
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        fused_distillation_loss(**{**vars(Case.random()), **changed})


def test_without_last_hidden_states_there_is_no_cosine():
    case = Case.random()
    total, terms = replace(case, student_hidden=None, teacher_hidden=None).fused()
    expected = case.plain()
    assert terms.cosine == 0
    assert total.item() == pytest.approx(expected.total((0.5, 0.0, 0.2)).item(), rel=1e-12)
