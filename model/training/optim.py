"""AdamW, the learning rate, and the optimiser step."""

from collections.abc import Iterable

import torch
from torch import nn

BETAS, EPSILON = (0.9, 0.98), 1e-6  # of AdamW; the paper names none, these are the DistilBERT script's


class KeepingAdamW(torch.optim.AdamW):
    """AdamW that never frees the gradients: it sets them to 0 in place.

    For CUDA graphs. A gradient that a graph computes lies in the graph's memory, where the next replay overwrites it.
    Autograd makes it the gradient of a parameter that has none, but adds it to a gradient that is there.
    """

    def __init__(self, params: Iterable[dict], **settings):
        super().__init__(params, **settings)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)

    def zero_grad(self, set_to_none: bool = False) -> None:
        super().zero_grad(set_to_none=False)


def make_optimiser(
    model: nn.Module, lr: float, weight_decay: float, keeps_gradients: bool = False
) -> torch.optim.AdamW:
    """AdamW, fused; weight decay on matrices only, not on biases and LayerNorms.

    keeps_gradients: in memory of their own, which CUDA graphs need; else the optimiser step frees them.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    kind = KeepingAdamW if keeps_gradients else torch.optim.AdamW
    return kind(groups, lr=lr, betas=BETAS, eps=EPSILON, fused=True)


def default_lr(hidden_size: int, has_teacher: bool) -> float:
    """Peak learning rate: 1e-3 up to a hidden size of 256, for which it was chosen (eval/LOG.md), and less above.

    With a teacher, in proportion to 1 / hidden_size: 3.3e-4 for 768 (DistilBERT's script has 5e-4); the loss of a run
    of 500 steps was lower than with a third of it, and equal to that with twice it. By masked LM alone, mostly from
    random values, in proportion to its square, 1.1e-4: of 12 layers of 768, 1e-4 trained, 3e-4 did not.
    """
    return 1e-3 * min(1.0, 256 / hidden_size) ** (1 if has_teacher else 2)


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Of step 1, 2, …, steps: linear warm-up to the peak over a fraction of the steps, then linear decay to 0."""
    warmup_steps = round(warmup * steps)
    if step <= warmup_steps:
        return peak * step / warmup_steps
    return peak * (steps - step + 1) / (steps - warmup_steps)


class FixedScale(torch.amp.GradScaler):
    """A GradScaler whose scale stays 1: it only skips steps with a non-finite gradient."""

    def __init__(self, device: str):
        super().__init__(device, init_scale=1.0)

    def update(self, new_scale: float = 1.0) -> None:
        super().update(new_scale)

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state_dict: dict) -> None:
        """Ignores the scale of a run that was in fp16 until now."""


def optimiser_step(
    model: nn.Module, optimiser: torch.optim.AdamW, scaler: torch.amp.GradScaler, lr: float, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips the gradient, steps and clears it; the scaler skips a step with a non-finite gradient.

    -> the gradient norm before clipping, whether it is not finite, both ().  Nothing here waits for a GPU. (A norm that
    overflows, above 1e19, although each element is finite, does not skip the step but clips its gradient to 0.)
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    scaler.unscale_(optimiser)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    return grad_norm, ~grad_norm.isfinite()
