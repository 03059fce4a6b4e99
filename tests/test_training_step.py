"""A whole training step on the GPU where there is one: gradients in each precision, and a host that never waits."""

import contextlib
import sys
import traceback
from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from data.blocks import Batch
from eval.validation import validate
from losses import LossSettings
from model import initialise_student
from model.dropout import set_dropout
from model.inference import PRECISIONS
from model.training.device import Runtime, prepare_models, set_up_process
from model.training.distributed import SINGLE
from model.training.extra_terms import NO_EXTRA_TERMS, ExtraTerms
from model.training.optim import make_optimiser, optimiser_step
from model.training.state import PendingLosses, TrainState
from tests import train_runs
from tests.helpers import DEVICE, assert_close, gradients, relative_norm

pytestmark = pytest.mark.gpu

SETTINGS = LossSettings()
BEYOND = ExtraTerms((1.0, 1.0), layers=(0, 2), relation_layer=3, relation_heads=4)  # terms beyond the paper
both = pytest.mark.parametrize("extra", [NO_EXTRA_TERMS, BEYOND], ids=["equation 13", "with terms beyond it"])
aten = torch.ops.aten


class Training:
    """A student, its frozen teacher, and what a step needs, as in train.run."""

    def __init__(
        self, precision: str, dropout: float = 0.1, compiled: bool = False, extra: ExtraTerms = NO_EXTRA_TERMS
    ):
        if compiled:
            torch._dynamo.reset()  # it compiles a layer for a few forms only, and then runs it uncompiled
        self.runtime = Runtime(DEVICE, precision, compiled)
        self.teacher = train_runs.make_teacher().to(DEVICE)
        self.student = initialise_student(self.teacher, [0, 2]).train()
        set_dropout(self.student, dropout)
        prepare_models(self.student, self.teacher, self.runtime)
        self.distiller = train.Distiller(self.student, self.teacher, SETTINGS, self.runtime, extra).to(DEVICE)
        self.optimiser = make_optimiser(self.distiller, 1e-3, 0.01, keeps_gradients=self.runtime.uses_graphs)
        self.scaler = self.runtime.grad_scaler()
        self.pending, self.state = PendingLosses((*SETTINGS.weights, *extra.weights)), TrainState()
        self.batches = train_runs.uneven_batches()

    def gradients(self, key: tuple[int, int] = (0, 0), batches: Sequence[Batch] | None = None) -> dict[str, Tensor]:
        """A copy of the gradients of a step that changes nothing."""
        batches = batches or self.batches
        train.backward(self.distiller, self.teacher, batches, self.scaler, dropout_key=key)
        self.scaler.unscale_(self.optimiser)
        copies = gradients(self.student)
        self.scaler.update()
        self.optimiser.zero_grad()
        return copies

    def step(self) -> None:
        self.state.step += 1
        key = (0, self.state.step)
        sums = train.backward(self.distiller, self.teacher, self.batches, self.scaler, dropout_key=key)
        _, skipped = optimiser_step(self.distiller, self.optimiser, self.scaler, 1e-3, 5.0)
        self.pending.add(sums, skipped)


class DeviceWaits(TorchDispatchMode):
    """On the CPU, finds where the host would wait for a GPU that holds `on_device`, and what is computed from it.

    waits: the functions in which the host reads such a value (a mask used as an index is read, for its number of true
    values), or in which one meets a tensor of the host, which `to_device` has not copied: another copy waits. Tensors
    of the host are `on_host`, those made of Python's numbers, and what is computed from them alone; on a GPU,
    element-wise operations take such a tensor as it is if it has no dimension.
    """

    def __init__(self, on_device, on_host):
        super().__init__()
        self.waits, self.kept, self.places = [], [], {}  # address -> "device" or "host"
        self.mark(on_device, "device")
        self.mark(on_host, "host")

    def mark(self, tensors, place):
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr():
                self.kept.append(tensor)  # so that its address is not used again
                self.places[tensor.untyped_storage().data_ptr()] = place

    def is_on(self, place, value):
        return isinstance(value, torch.Tensor) and self.places.get(value.untyped_storage().data_ptr()) == place

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs, operation = tree_leaves((args, kwargs)), function.overloadpacket
        read = inputs if operation in (aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select) else ()
        if operation in (aten.index, aten.index_put, aten.index_put_):
            read = [each for each in tree_leaves(args[1]) if each is not None and each.dtype == torch.bool]
        on_device = any(self.is_on("device", each) for each in inputs)
        on_host = [each for each in inputs if self.is_on("host", each)]
        copied = [each for each in on_host if each.ndim or operation in (aten.stack, aten.cat, aten.copy_)]
        if any(self.is_on("device", each) for each in read) or (on_device and copied):
            callers = [frame.f_code for frame, _ in traceback.walk_stack(sys._getframe(1))]
            self.waits.append(next(code.co_qualname for code in callers if "/torch/" not in code.co_filename))
        result = function(*args, **kwargs or {})
        if on_device or on_host or operation == aten.lift_fresh:
            self.mark(tree_leaves(result), "device" if on_device else "host")
        return result


@contextlib.contextmanager
def no_wait_for(training: Training):
    """Fails if the host waits for the device in the block: CUDA's own check, or, on a CPU, DeviceWaits."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    states = [tensor for state in training.optimiser.state.values() for tensor in state.values()]
    on_device = [*training.distiller.parameters(), *training.teacher.parameters(), *states]
    watch = DeviceWaits(on_device, tree_leaves(training.batches))

    def copied(tensor, device):
        watch.mark([copy := tensor.clone()], "device")
        return copy

    def copied_batch(batch, device):
        return Batch(*(copied(tensor, device) for tensor in batch[:3]), batch.has_padding)

    patches = mock.patch("losses.fused.to_device", copied), mock.patch("train.to_device", copied)
    with patches[0], patches[1], mock.patch.object(Batch, "to", copied_batch), watch:
        yield
    # FusedDistillation.backward reads its factor on a CPU only
    assert all(name.startswith("FusedDistillation.backward") for name in watch.waits), watch.waits


@pytest.mark.parametrize(
    ("precision", "extra"), [*((each, NO_EXTRA_TERMS) for each in ("fp32", "bf16", "fp16")), ("fp16", BEYOND)]
)
def test_the_host_does_not_wait_for_the_device(precision, extra):
    """In a step from the micro-batches on the CPU to the pending losses; it waits when they are read."""
    training = Training(precision, extra=extra)
    for _ in range(3):  # the first steps allocate memory and load kernels
        training.step()
    with no_wait_for(training):
        for _ in range(2):
            training.step()
    training.pending.read_into(training.state, 20, SINGLE)
    assert training.state.sums[4] > 0 and training.state.skipped == ()


def test_a_wait_for_the_device_is_found():
    training = Training("fp32")
    bias = training.student.bias
    for wait in (
        lambda: training.pending.sums[-1].sum().item(),
        lambda: bool((2 * bias).isfinite().all()),
        lambda: bias[bias > 0],
        lambda: bias.nonzero(),
        lambda: torch.stack([bias.sum(), training.batches[0].real.sum().to(bias.device)]),
        lambda: bias + torch.tensor(range(len(bias)), device=bias.device),
    ):
        with pytest.raises((AssertionError, RuntimeError)), no_wait_for(training):
            training.step()
            wait()


@both
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_gradients_in_half_precision_are_near_those_in_fp32(precision, extra):
    """Of a whole step, after unscaling; none overflows at the GradScaler's initial scale."""
    found = []
    for each in (precision, "fp32"):
        found.append(
            torch.cat(
                [gradient.flatten() for gradient in Training(each, dropout=0.0, extra=extra).gradients().values()]
            )
        )
    assert 1e-5 < relative_norm(*found) < 4 * torch.finfo(PRECISIONS[precision]).eps


# ---- CUDA graphs: recorded in a form's second micro-batch, replayed from the third on ----------------------------

needs_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="CUDA graphs run on a GPU only")


@pytest.fixture
def deterministic():
    """As train.py sets it: otherwise attention in fp32 adds up its gradients in any order."""
    set_up_process(DEVICE)
    yield
    torch.use_deterministic_algorithms(False)


@needs_cuda
@both
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.2)])
def test_with_cuda_graphs_the_gradients_are_those_of_uncompiled_steps(precision, tolerance, extra):
    """Over steps of one to three micro-batches, with and without padding, whose weights change in between."""
    plain, graphs = (Training(precision, dropout=0.0, compiled=each, extra=extra) for each in (False, True))
    one, two, three, four = plain.batches
    for batches in ([two, three], [four, two], [three, one, two], [one, one], [four, three], [one], [two, four]):
        expected = plain.gradients(batches=batches)
        assert_close(graphs.gradients(batches=batches), expected, tolerance)
        plain.step()
        graphs.student.load_state_dict(plain.student.state_dict())


@needs_cuda
@both
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_with_cuda_graphs_the_same_seed_gives_the_same_bits(precision, extra, deterministic):
    """Of dropout too: in the first steps, which record the graphs, in replays, and after a validation.

    Then no more are recorded, and memory does not grow; nothing was left out of the graphs.
    """
    from torch._inductor.cudagraph_trees import get_manager  # on a CPU, it would only make the other tests slower

    training, counters = Training(precision, compiled=True, extra=extra), torch._dynamo.utils.counters["inductor"]
    skipped, sizes, found = counters["cudagraph_skips"], [], []
    kept = [parameter.grad for parameter in training.student.parameters()]
    for key in ((0, 1), (0, 2), (0, 1), (0, 1), (0, 2), (0, 1)):
        found.append({name: gradient.cpu() for name, gradient in training.gradients(key).items()})
        validate(training.student, training.teacher, training.batches, SETTINGS, training.runtime)
        roots = get_manager(torch.cuda.current_device()).get_roots()
        sizes.append((sum(1 + root.num_descendants() for root in roots), torch.cuda.memory_allocated()))
    for number, other in ((2, 0), (3, 0), (5, 0), (4, 1)):
        assert all(torch.equal(found[number][name], gradient) for name, gradient in found[other].items()), number
    name = "encoder.layers.1.feed_forward.feed.weight"
    assert relative_norm(found[1][name], found[0][name]) > 1e-3
    assert sizes[3:] == sizes[3:4] * 3 and sizes[3][0] > 0, sizes
    assert all(parameter.grad is gradient for parameter, gradient in zip(training.student.parameters(), kept))
    assert counters["cudagraph_skips"] == skipped
