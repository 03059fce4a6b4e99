"""What is compared: the paper's distillation, what its users asked about, and what goes beyond the paper."""

from dataclasses import replace
from typing import NamedTuple

from data.cli import dashed
from model import EncoderConfig
from model.student import choose_layers
from model.training.optim import default_lr
from model.training.options import SIZES

PAPER, MLM_ONLY, RANDOM = "paper", "mlm-only", "random"
MAIN = (PAPER, MLM_ONLY, RANDOM)  # the first is distilled, the second shows what the teacher's layers do alone
TEACHER, FINE_TUNED = "teacher", (PAPER, MLM_ONLY)  # on the tasks of section 4
NAMES = (
    *MAIN,
    *("no-cosine", "no-soft-labels", "teacher-student-T2"),
    *("last-half", "first-half", "both-ends"),
    *("hidden-states", "relations", "masking-15"),
)


class Variant(NamedTuple):
    name: str
    about: str  # the difference from the paper's distillation
    arguments: tuple[str, ...]  # of train.py, beside those that all variants have


def make_variants(teacher: EncoderConfig, lr: float | None = None) -> dict[str, Variant]:
    """All of NAMES for a teacher; without the choices of layers that are the same as another, or with one layer
    hidden-states, which has no other layer than the last to compare.  lr: None for train.py's default"""
    layers = teacher.num_layers
    alternate = choose_layers("alternate", layers)
    kept = len(alternate)
    choices = {
        "last-half": list(range(layers - kept, layers)),
        "first-half": list(range(kept)),
        "both-ends": [round(index * (layers - 1) / max(kept - 1, 1)) for index in range(kept)],  # DistilBERT's of 12
    }
    at_random = random_start(replace(teacher, num_layers=kept), lr)
    rate, alone = (default_lr(teacher.hidden_size, has_teacher) for has_teacher in (True, False))
    slower = "" if lr or rate == alone else f", learning rate {alone:.2g}, of the others {rate:.2g}"
    variants = [
        Variant(PAPER, f"equation (13), layers {listed(alternate)}", ()),
        Variant(MLM_ONLY, "equation (12) alone, from the teacher's layers", ("--weights", "0", "0", "1")),
        Variant(RANDOM, f"equation (12) alone, from random numbers{slower}", at_random),
        Variant("no-cosine", "without equation (11)", ("--weights", "0.5", "0", "0.2")),
        Variant("no-soft-labels", "without equation (10)", ("--weights", "0", "0.3", "0.2")),
        Variant(
            "teacher-student-T2",
            "D_KL(teacher || student) at temperature 2, as DistilBERT's script",
            ("--direction", "teacher-student", "--temperature", "2"),
        ),
    ]
    seen = [alternate]
    for name, choice in choices.items():
        if choice not in seen:
            seen.append(choice)
            about = f"layers {listed(choice)}" + ", chosen as DistilBERT's" * (name == "both-ends")
            variants.append(Variant(name, about, ("--layers", ",".join(map(str, choice)))))
    if kept > 1:
        about = "also the hidden states before the last layer, weight 1"
        variants.append(Variant("hidden-states", about, ("--hidden-weight", "1")))
    variants += [
        Variant("relations", "also MiniLMv2's attention relations, weight 0.03", ("--relation-weight", "0.03")),
        Variant("masking-15", "15 % of the tokens masked, as for BERT", ("--masking-rate", "0.15")),
    ]
    return {variant.name: variant for variant in variants}


def random_start(config: EncoderConfig, lr: float | None) -> tuple[str, ...]:
    """The arguments of train.py for masked LM alone from random initial values."""
    sizes = (word for name in SIZES for word in (dashed(name), str(getattr(config, name))))
    return "--teacher", "none", "--lr", str(lr or default_lr(config.hidden_size, has_teacher=False)), *sizes


def listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))
