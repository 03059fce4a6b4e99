"""Section 3.1: the student is initialised from layers of its teacher."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from .config import ModelError
from .heads import MaskedLM

DISTILBERT_LAYERS = (0, 2, 4, 7, 9, 11)  # of twelve: Hugging Face's extraction script for DistilBERT


def choose_layers(choice: str, num_layers: int) -> list[int]:
    """Section 3.1: "une couche Transformer sur deux", without saying which.  -> indices of teacher layers, from 0

    choice: "alternate" (the default), 0, 2, 4, 6, 8, 10 of twelve; "distilbert", 0, 2, 4, 7, 9, 11 of twelve; or a
    list such as "0,5,11".  Raises ModelError if the choice does not fit the teacher.
    """
    if choice == "alternate":
        return list(range(0, num_layers, 2))
    if choice == "distilbert":
        if num_layers != 12:
            raise ModelError(
                f"--layers distilbert ({', '.join(map(str, DISTILBERT_LAYERS))}) needs a teacher of 12 layers; this "
                f"one has {num_layers}. List the layers instead, for example 0,2,4."
            )
        return list(DISTILBERT_LAYERS)
    try:
        layers = [int(index) for index in choice.split(",")]
    except ValueError:
        raise ModelError(f"Layers are alternate, distilbert or indices such as 0,2,4, not {choice!r}.") from None
    check_layers(layers, num_layers)
    return layers


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    wrong = [index for index in layers if not 0 <= index < num_layers]
    if wrong or not layers:
        what = f"there is no layer {wrong[0]}" if wrong else "none was given"
        raise ModelError(f"The student's layers are chosen from the teacher's, 0 to {num_layers - 1}: {what}.")


def initialise_student(teacher: MaskedLM, layers: Sequence[int]) -> MaskedLM:
    """Section 3.1: the student's layer i starts as a copy of the teacher's layer layers[i].

    The word and position embeddings are copied, as in the paper, and so are the embeddings' LayerNorm, the LM head
    and its bias, which the paper does not mention. Nothing shares memory with the teacher; the precision is kept.
    Raises ModelError for a layer that the teacher does not have.
    """
    check_layers(layers, teacher.config.num_layers)
    with torch.device("meta"):  # no memory, no random numbers: every tensor is a copy of the teacher's
        student = MaskedLM(replace(teacher.config, num_layers=len(layers)))
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items() if ".layers." not in name}
    for target, source in enumerate(layers):
        for name, tensor in teacher.encoder.layers[source].state_dict().items():
            state[f"encoder.layers.{target}.{name}"] = tensor.clone()
    student.load_state_dict(state, assign=True)
    return student
