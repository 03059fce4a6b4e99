"""AdamW's groups, the learning-rate schedule, clipping and skipped steps."""

import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from model import EncoderConfig, MaskedLM
from model.training.device import Runtime
from model.training.optim import default_lr, learning_rate, make_optimiser, optimiser_step
from tests.helpers import DEVICE

DISABLED = torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return MaskedLM(EncoderConfig(1, 32, 2, 64, 1005))


def test_wide_students_learn_more_slowly():
    """Those from random values most of all: with 12 layers of 768, 3e-4 was too much on an H200."""
    assert default_lr(128, True) == default_lr(256, True) == default_lr(256, False) == 1e-3
    assert default_lr(768, True) == pytest.approx(1e-3 / 3) and default_lr(768, False) == pytest.approx(1e-3 / 9)


def test_linear_warmup_and_linear_decay():
    rates = [learning_rate(step, 100, peak=1.0, warmup=0.1) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10:] == pytest.approx([(90 - step) / 90 for step in range(90)])
    assert max(rates) == 1.0 and min(rates) > 0 and learning_rate(1, 1, 1.0, warmup=0.1) == 1.0
    assert learning_rate(1, 100, 1.0, warmup=0.0) == learning_rate(100, 100, 1.0, warmup=1.0) == 1.0


def test_biases_and_layer_norms_do_not_decay(student):
    optimiser = make_optimiser(student, 0.5, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in student.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name
    assert all(group["lr"] == 0.5 and group["fused"] for group in optimiser.param_groups)


def test_a_gradient_above_the_maximum_norm_is_clipped(student):
    optimiser = torch.optim.SGD(student.parameters(), lr=123.0, fused=True)  # optimiser_step sets its own lr
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = parameters_to_vector(student.parameters())
    grad_norm, skipped = optimiser_step(student, optimiser, DISABLED, lr=1.0, clip=0.5)
    assert not skipped and all(parameter.grad is None for parameter in student.parameters())
    assert grad_norm.item() == pytest.approx(3 * len(before) ** 0.5, rel=1e-5)
    assert (parameters_to_vector(student.parameters()) - before).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_gradients_that_are_kept_give_the_same_bits():
    """In the same memory from before the first step on, as CUDA graphs need; a step that is skipped included."""
    found = []
    for keeps_gradients in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimiser, scaler = make_optimiser(model, 0.1, 0.1, keeps_gradients), Runtime(torch.device("cpu")).grad_scaler()
        before = [parameter.grad for parameter in model.parameters()]
        for factor in (1.0, math.inf, 2.0):
            for example in torch.eye(3):  # three micro-batches
                scaler.scale(factor * model(example).square().sum()).backward()
            if keeps_gradients:
                assert all(parameter.grad is kept for parameter, kept in zip(model.parameters(), before))
            optimiser_step(model, optimiser, scaler, 0.1, 5.0)
            assert all((p.grad is not None and not p.grad.any()) == keeps_gradients for p in model.parameters())
        found.append(parameters_to_vector(model.parameters()))
    assert torch.equal(*found)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("where", ["dense.weight", "dense.bias"])  # in the two groups of the optimiser
def test_a_step_with_one_gradient_that_is_not_finite_is_skipped(student, precision, bad, where):
    """It changes no weight, no moment and no step count. In fp16 the scaler then halves its scale."""
    student, scaler = student.to(DEVICE), Runtime(DEVICE, precision).grad_scaler()
    optimiser = make_optimiser(student, 0.1, weight_decay=0.1)

    def tensors():
        states = (tensor for state in optimiser.state.values() for tensor in state.values())
        return [tensor.detach().clone() for tensor in (*student.parameters(), *states)]

    for number in (1.0, bad, 1.0):
        scale = scaler.scale(torch.ones((), device=DEVICE))
        for name, parameter in student.named_parameters():
            parameter.grad = torch.full_like(parameter, 0.01) * scale
            if name == where:
                parameter.grad.view(-1)[-1] = number * scale
        before = tensors()
        grad_norm, skipped = optimiser_step(student, optimiser, scaler, 0.1, 5.0)
        assert grad_norm.isfinite() == math.isfinite(number) != skipped
        unchanged = [torch.equal(now, then) for now, then in zip(tensors(), before)]
        assert all(unchanged) if skipped else not any(unchanged)
    assert scaler.get_scale() == (65536 / 2 if precision == "fp16" else 1)
