"""Sections 2 and 3.1 of the paper: the Transformer encoder, its heads, its parameter count, the student's start.

`checkpoints/` reads and writes weight files, `training/` has what a training run needs around the equations.
"""

from .checkpoints.native import load_model, save_model
from .config import EncoderConfig, ModelError, count_parameters
from .encoder import Encoder
from .heads import MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier
from .packed import encode_packed
from .student import choose_layers, initialise_student

__all__ = [
    "Encoder",
    "EncoderConfig",
    "MaskedLM",
    "ModelError",
    "QuestionAnswerer",
    "SequenceClassifier",
    "TokenClassifier",
    "choose_layers",
    "count_parameters",
    "encode_packed",
    "initialise_student",
    "load_model",
    "save_model",
]
