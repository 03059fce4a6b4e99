"""Section 3.2 of the paper: what the student is trained to make small. Knows tensors, not models."""

from .cosine import cosine_loss
from .distillation import WEIGHTS, DistillationLoss, distillation_loss
from .fused import CHUNK_BYTES, fused_distillation_loss
from .mlm import IGNORED, mlm_loss
from .soft_label import DIRECTIONS, soft_label_loss

__all__ = [
    "CHUNK_BYTES",
    "DIRECTIONS",
    "IGNORED",
    "WEIGHTS",
    "DistillationLoss",
    "cosine_loss",
    "distillation_loss",
    "fused_distillation_loss",
    "mlm_loss",
    "soft_label_loss",
]
