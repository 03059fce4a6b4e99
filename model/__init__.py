"""Section 2 of the paper: the architecture. Knows no loss, no training and no file format of others."""

from .checkpoint import load_model, save_model
from .config import EncoderConfig, ModelError
from .encoder import Encoder
from .heads import MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier
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
    "initialise_student",
    "load_model",
    "save_model",
]


def __getattr__(name: str):
    # model.parameters is also a command. Imported here at once, `python -m model.parameters` would warn that
    # the module it is about to run is there already.
    if name == "count_parameters":
        from .parameters import count_parameters

        return count_parameters
    raise AttributeError(f"module 'model' has no attribute {name!r}")
