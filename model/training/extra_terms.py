"""The loss terms beyond the paper, options of equation (13): which states of student and teacher they compare."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data.blocks import Batch
from data.cli import check
from losses import attention_relation_loss, hidden_state_loss

from ..heads import MaskedLM
from ..student import choose_layers
from .options import Options


class ExtraTerms(NamedTuple):
    """What stays the same during a run. A term of weight 0 is not computed."""

    weights: tuple[float, float] = (0.0, 0.0)  # of hidden_state_loss and attention_relation_loss
    layers: Sequence[int] = ()  # the teacher layer whose place each student layer takes
    relation_layer: int = 0  # of the teacher, from 0
    relation_heads: int = 1

    @property
    def are_used(self) -> bool:
        return any(self.weights)

    def hidden_states(self, model: MaskedLM, batch: Batch) -> list[Tensor]:
        """-> [H_L], which equation (13) needs; for these terms [H_0, …, H_L].  (B, n, d_h) each"""
        inputs = dict(input_ids=batch.input_ids, attention_mask=batch.real, has_padding=batch.has_padding)
        return model.encoder.hidden_states(**inputs) if self.are_used else [model.encoder(**inputs)]

    def sums(
        self,
        student: MaskedLM,
        student_states: Sequence[Tensor],
        teacher: MaskedLM,
        teacher_states: Sequence[Tensor],
        real: Tensor,
    ) -> Tensor:
        """Both terms as sums over a micro-batch's real tokens, (2,).  states: [H_0, …, H_L]; real: (B, n)

        The student's layer i + 1 takes the place of the teacher's layer k_{i+1}; what goes into the one is compared
        with what goes into the other: the states after the student's layer i and the teacher's k_{i+1} − 1.
        """
        hidden = relations = torch.zeros((), device=real.device)
        if self.weights[0]:
            hidden, _ = hidden_state_loss(student_states[1:-1], [teacher_states[k] for k in self.layers[1:]], real)
        if self.weights[1]:
            of_student = project(student, -1, student_states[-2])
            of_teacher = project(teacher, self.relation_layer, teacher_states[self.relation_layer])
            relations, _ = attention_relation_loss(of_student, of_teacher, real, self.relation_heads)
        return torch.stack([hidden, relations])


NO_EXTRA_TERMS = ExtraTerms()


def project(model: MaskedLM, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Equations (2) to (4) of a layer, all heads side by side, from the state that goes into it.  (B, n, d_h) each"""
    attention = model.encoder.layers[layer].attention
    return attention.query(hidden), attention.key(hidden), attention.value(hidden)


def choose_extra_terms(options: Options, teacher: MaskedLM | None, student: MaskedLM) -> ExtraTerms:
    """None without a teacher, whatever the weights.  Raises OptionError for models that a term cannot compare."""
    weights = options.hidden_weight, options.relation_weight
    if teacher is None or not any(weights):
        return NO_EXTRA_TERMS
    width, num_layers = student.config.hidden_size, student.config.num_layers
    teacher_width, teacher_layers = teacher.config.hidden_size, teacher.config.num_layers
    heads, layer = options.relation_heads or teacher.config.num_heads, options.relation_layer
    layer = teacher_layers - 1 if layer is None else layer
    if options.hidden_weight:
        widths = f"the student's is {width}, the teacher's {teacher_width}"
        check(width == teacher_width, f"--hidden-weight needs models of one width; {widths}. Use --relation-weight.")
        last = "the last hidden states are those of equation (11)"
        check(num_layers > 1, f"--hidden-weight needs a student of at least two layers: {last}.")
    if options.relation_weight:
        widths = f"the widths of student and teacher, {width} and {teacher_width}; {heads} does not"
        check(width % heads == teacher_width % heads == 0, f"--relation-heads must divide {widths}.")
        layers = f"the teacher's layers, 0 to {teacher_layers - 1}"
        check(layer < teacher_layers, f"--relation-layer must be one of {layers}, not {layer}.")
    if options.student is None:
        places = choose_layers(",".join(options.layers), teacher_layers)
    else:  # where its layers came from is not known
        places = [i * teacher_layers // num_layers for i in range(num_layers)]
    return ExtraTerms(weights, places, layer, heads)
