"""Section 3.2 of the paper: the three distillation losses and their sum; two more terms. Knows tensors, not models."""

from .cosine import cosine_loss
from .distillation import WEIGHTS, DistillationLoss, distillation_loss
from .fused import LossSettings, fused_distillation_loss
from .hidden import hidden_state_loss
from .mlm import IGNORE_INDEX, mlm_loss
from .relations import attention_relation_loss
from .soft_label import DIRECTIONS, soft_label_loss

__all__ = [
    "DIRECTIONS",
    "IGNORE_INDEX",
    "WEIGHTS",
    "DistillationLoss",
    "LossSettings",
    "attention_relation_loss",
    "cosine_loss",
    "distillation_loss",
    "fused_distillation_loss",
    "hidden_state_loss",
    "mlm_loss",
    "soft_label_loss",
]
