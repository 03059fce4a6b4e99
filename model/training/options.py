"""The options of train.py, their defaults and bounds, and which of them may differ when a run resumes."""

import math
from dataclasses import asdict, dataclass, replace

from data.cache import DEMO
from data.cli import check, check_bounds, dashed, option
from data.locks import WAIT_HELP
from data.masking import RATE, STRATEGIES, TRAINING_RATE
from losses import DIRECTIONS, LossSettings
from losses.fused import CHUNK_BYTES

from ..checkpoints.load import TOKENIZER_HELP
from ..inference import PRECISIONS
from .bounds import CLIP, DROPOUT, LR, SEED, TEMPERATURE, WEIGHT, WEIGHT_DECAY
from .device import DEVICE_HELP, PRECISION_HELP
from .optim import default_lr

DEFAULTS = LossSettings()
STEPS = 300  # unless --steps or --epochs is given
DEMO_TEXT_STEPS = 1000  # at most, with a teacher that is not the demo's: a test of the installation
COMPILE_STEPS = 1000  # shorter runs end before compilation has paid off
CHUNK_MB = "{cpu}; on a GPU {cuda}".format(**{name: size >> 20 for name, size in CHUNK_BYTES.items()})
PER_HOST = ("device", "out", "cache", "teacher", "student", "tokenizer", "corpus")  # compared by what is read there
SIZE_GROUP = "student size, for --teacher none only (default: DistilCamemBERT's)"
SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size")  # options for --teacher none
ON_MEMORY = (
    "Use a smaller --batch-size with a larger --accumulate, so that a step has the same blocks, or a smaller "
    "--chunk-mb; --plan tells what is needed. The same command with them resumes from the last checkpoint, if any."
)
MAY_DIFFER = (  # options that do not affect the student, but for rounding: a run resumes with other values of them
    *("out", "device", "cache", "chunk_mb", "log_every", "eval_every", "checkpoint_every"),
    *("keep", "resume", "wait", "max_hours", "max_skipped", "plan", "tensorboard", "timeout"),
)


@dataclass(frozen=True)
class Options:
    """Every option of a run with its default. Stored with the student."""

    teacher: str = option(
        "demo", "model to distil: path, or owner/name; demo; none: masked LM", "input and output", metavar="MODEL"
    )
    tokenizer: str | None = option(None, TOKENIZER_HELP, metavar="PATH")
    corpus: tuple[str, ...] = option(DEMO, "prepared folder, text, hub:owner/dataset", nargs="+", metavar="PATH")
    cache: str = option("runs/corpora", "folder where text given as --corpus is prepared", metavar="FOLDER")
    out: str = option("runs/student", "folder for the student, metrics.jsonl and checkpoints", metavar="FOLDER")

    student: str | None = option(
        None, "masked LM to start from (default: --layers of the teacher)", "student and loss", metavar="MODEL"
    )
    layers: tuple[str, ...] = option(
        ("alternate",),
        "teacher layers to copy: alternate (0, 2, …), distilbert (0, 2, 4, 7, 9, 11), indices",
        nargs="+",
    )
    dropout: float = option(0.0, "of the student, in this run only", **DROPOUT)
    direction: str = option(
        DEFAULTS.direction,
        "of the KL divergence of equation (10), as printed D_KL(student || teacher)",
        choices=DIRECTIONS,
    )
    temperature: float = option(DEFAULTS.temperature, "of the softmaxes of equation (10)", **TEMPERATURE)
    weights: tuple[float, ...] = option(
        DEFAULTS.weights,
        "of the terms in equation (13)",
        nargs=3,
        type=float,
        metavar=("SOFT", "COS", "MLM"),
        **WEIGHT,
    )
    hidden_weight: float = option(0.0, "beyond the paper: of hidden states", **WEIGHT)
    relation_weight: float = option(0.0, "beyond the paper: attention relations", **WEIGHT)
    relation_heads: int | None = option(
        None, "their heads (default: the teacher's attention heads)", type=int, least=1, most=16384
    )
    relation_layer: int | None = option(
        None, "their teacher layer, from 0 (default: the last)", type=int, least=0, most=999
    )

    steps: int | None = option(
        None, f"optimiser steps (default: {STEPS})", "optimisation", type=int, least=1, most=10**9
    )
    epochs: float | None = option(
        None, "instead of --steps: passes over the corpus", type=float, least=1e-6, most=10**6
    )
    batch_size: int = option(8, "blocks per micro-batch", least=1, most=10**6)
    accumulate: int = option(1, "micro-batches per optimiser step, over all ranks", least=1, most=10**6)
    block_size: int = option(128, "tokens per block", least=3, most=10**5)
    within_documents: bool = option(False, "let no block cross a document boundary; the rest of a document is unused")
    masking: str = option(
        STRATEGIES[0], "what is masked: single tokens, whole words, or rare tokens more often", choices=STRATEGIES
    )
    masking_rate: float = option(TRAINING_RATE, "fraction of tokens masked in training", **RATE)
    lr: float | None = option(
        None, "peak learning rate (default: 1e-3; less above a hidden size of 256, 3.3e-4 for 768)", type=float, **LR
    )
    warmup: float = option(0.05, "warm-up fraction; the learning rate then decays linearly", least=0, most=1)
    weight_decay: float = option(0.0, "of AdamW, on matrices only", **WEIGHT_DECAY)
    clip: float = option(5.0, "maximum gradient norm", **CLIP)
    seed: int = option(0, "of initial values, data order, masks and dropout", **SEED)

    device: str = option("auto", DEVICE_HELP, "device")
    precision: str = option("auto", PRECISION_HELP, choices=("auto", *PRECISIONS))
    compile: str = option(
        "auto",
        f"torch.compile, with CUDA graphs on a GPU; auto: for runs of at least {COMPILE_STEPS:,} steps",
        choices=("auto", "on", "off"),
    )
    chunk_mb: int | None = option(
        None, f"memory for the loss's logits, in MiB (default: {CHUNK_MB})", type=int, least=1, most=10**6
    )

    log_every: int = option(10, "steps between progress lines", "checkpoints and logging", least=1, most=10**9)
    eval_every: int = option(0, "steps between validations, 0: only at the end", least=0, most=10**9)
    checkpoint_every: int = option(
        1000, "steps between checkpoints, 0: only when the run is stopped", least=0, most=10**9
    )
    plan: bool = option(False, "print what the run will do, cost and write, from a few timed steps; do not train")
    keep: int = option(2, "checkpoints to keep", least=1, most=10**4)
    resume: bool = option(True, "resume the run in --out, if its options are the same; more --steps extend it")
    wait: bool = option(False, WAIT_HELP)
    timeout: float = option(300.0, "with torchrun: seconds that a rank may not answer", least=1, most=10**6)
    max_hours: float | None = option(
        None, "save a checkpoint and exit after this time", type=float, least=1e-7, most=10**5
    )
    max_skipped: int = option(
        20, "steps in a row with a non-finite gradient before the run gives up", least=1, most=10**6
    )
    tensorboard: bool = option(False, "also log to TensorBoard (needs tensorboard)")

    num_layers: int | None = option(None, "layers", SIZE_GROUP, type=int, least=1, most=1000)
    hidden_size: int | None = option(None, "hidden size", type=int, metavar="SIZE", least=1, most=16384)
    num_heads: int | None = option(None, "attention heads", type=int, metavar="HEADS", least=1, most=16384)
    intermediate_size: int | None = option(None, "feed-forward size", type=int, metavar="SIZE", least=1, most=65536)

    def __post_init__(self):
        check_bounds(self)
        check(self.steps is None or self.epochs is None, "--epochs is another way to say --steps: give one of them.")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "steps", STEPS)
        check(max(self.weights) >= 1e-3, "--weights needs at least one weight of 0.001 or more.")
        for name in SIZES:
            allowed = self.teacher == "none" or getattr(self, name) is None
            check(allowed, f"{dashed(name)} needs --teacher none; otherwise the teacher determines it.")
        check(self.student is None or self.layers == ("alternate",), "--layers cannot be combined with --student.")
        on_demo_text = self.corpus == DEMO and not self.is_demo
        message = f"--steps {self.steps} would train on the demo's invented text. Name a corpus with --corpus."
        check(not on_demo_text or self.steps is None or self.steps <= DEMO_TEXT_STEPS, message)

    def of_all_ranks(self) -> dict[str, object]:
        """The options that must be the same on every rank, by the names that a person types."""
        return {dashed(name): value for name, value in asdict(self).items() if name not in PER_HOST}

    @property
    def is_demo(self) -> bool:
        """Whether the teacher is the demo's; without a teacher, whether text and tokenizer are."""
        own = (self.student, self.tokenizer) != (None, None)
        return self.teacher == "demo" or (self.teacher == "none" and self.corpus == DEMO and not own)

    def complete(self, hidden_size: int, has_teacher: bool, blocks: float | None) -> "Options":
        """With --lr, and --epochs as --steps, so that a run is the same one however it was said.  Raises OptionError.

        hidden_size, has_teacher: see default_lr; blocks: of the corpus, for training, None if unknown.
        """
        lr = self.lr or default_lr(hidden_size, has_teacher)
        if self.epochs is None:
            return replace(self, lr=lr)
        check(blocks is not None, "--epochs needs the corpus, which is not fetched for --plan. Use --steps instead.")
        steps = math.ceil(self.epochs * blocks / (self.batch_size * self.accumulate) - 1e-9)
        return replace(self, lr=lr, epochs=None, steps=max(1, steps))
