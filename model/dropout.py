"""Dropout, with cheap random numbers on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """In training, zeroes each element with probability p and divides the others by 1 − p.  (…) -> (…)

    On a CPU, PyTorch draws two random numbers per element, in one thread: a tenth of a training step. Here one draw of
    64 bits decides about four elements, by 16 bits each, so that p is rounded to a multiple of 2^-16.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.acts_on_cpu(x):
            return F.dropout(x, self.p, self.training)
        dropped = min(round(self.p * 2**16), 2**16 - 1)  # of 65,536
        draws = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))  # int64
        kept = draws.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 2**15
        return torch.where(kept, x * (1 / (1 - dropped / 2**16)), 0.0)

    def acts_on_cpu(self, x: Tensor) -> bool:
        return self.training and self.p > 0 and x.device.type == "cpu"


def set_dropout(model: nn.Module, p: float) -> None:
    """The probability of all its dropouts, for a run; the model's config stays what it is."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = p
