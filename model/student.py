"""Section 3.1: the student starts as a part of its teacher."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .config import ModelError
from .heads import MaskedLM

# Which six layers of twelve Hugging Face's extraction script for DistilBERT takes.
DISTILBERT_LAYERS = (0, 2, 4, 7, 9, 11)


def choose_layers(choice: str, num_layers: int) -> list[int]:
    """Section 3.1: "une couche … sur deux", without saying which.  -> indices into the teacher's layers, from 0

    choice: "alternate", 0, 2, 4, … (the default; 0, 2, 4, 6, 8, 10 of twelve); "distilbert", 0, 2, 4, 7, 9, 11
    of twelve; or a list such as "0,5,11".  Raises ModelError where the choice does not fit the teacher.
    """
    if choice == "alternate":
        return list(range(0, num_layers, 2))
    if choice == "distilbert":
        if num_layers != 12:
            raise ModelError(
                f"The layers named distilbert ({', '.join(map(str, DISTILBERT_LAYERS))}) are of a teacher of 12; "
                f"this one has {num_layers}. Name the layers yourself, say 0,2,4."
            )
        return list(DISTILBERT_LAYERS)
    try:
        layers = [int(index) for index in choice.split(",")]
    except ValueError:
        raise ModelError(f"Layers are alternate, distilbert or numbers such as 0,2,4, not {choice!r}.") from None
    check_layers(layers, num_layers)
    return layers


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    wrong = [index for index in layers if not 0 <= index < num_layers]
    if wrong or not layers:
        what = f"there is no layer {wrong[0]}" if wrong else "none was named"
        raise ModelError(f"The student needs layers of its teacher, which are 0 to {num_layers - 1}: {what}.")


def initialise_student(teacher: MaskedLM, layers: Sequence[int], dropout: float | None = None) -> MaskedLM:
    """Section 3.1.  The student's layer i starts as the teacher's layer layers[i].

    Embeddings, the LM head and its bias are copied too; every number is a copy, in the teacher's precision, and
    nothing is shared with it. dropout: the student's own while it is trained, the teacher's by default.
    Raises ModelError for a layer that the teacher does not have.
    """
    check_layers(layers, teacher.config.num_layers)
    dropout = teacher.config.dropout if dropout is None else dropout
    with torch.device("meta"):  # nothing is drawn: every number comes from the teacher
        student = MaskedLM(replace(teacher.config, num_layers=len(layers), dropout=dropout))
    state = {}
    for name, tensor in teacher.state_dict().items():
        if not name.startswith("encoder.layers."):
            state[name] = tensor.clone()
    for target, source in enumerate(layers):
        for name, tensor in teacher.encoder.layers[source].state_dict().items():
            state[f"encoder.layers.{target}.{name}"] = tensor.clone()
    student.load_state_dict(state, assign=True)
    return student
