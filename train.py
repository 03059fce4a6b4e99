"""DistilCamemBERT: distils a CamemBERT into a student of half its layers, by section 3 of the paper.

python train.py
    a demo that needs nothing else: about a minute on two cores
python train.py --teacher camembert.safetensors --corpus texts/ --steps 100000 --accumulate 16
    the real thing; with sentencepiece.bpe.model beside the teacher, or --tokenizer. A large corpus is
    prepared beforehand (python -m data.prepare), a small one by itself
python train.py --teacher none --tokenizer sentencepiece.bpe.model --corpus texts/
    masked LM alone: the baseline without distillation
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large tensors in huge pages of a CPU's memory; before torch comes

import json
import math
import platform
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy
import torch
from torch import nn

from convert_weights import load_checkpoint
from data import DataError, OptionError, Tokenizer, demo
from data.blocks import Batch, Blocks, is_prepared, measuring_batches, open_blocks, training_batches
from data.masking import CHOICES, Masking
from data.options import check, check_bounds, dashed, option, parse_options
from data.prepare import prepare_into_cache
from data.shards import open_manifest
from data.tokenizer import FILE_NAME, tokenizer_beside
from eval.held_out import Diverged, masked_accuracy
from eval.machine import PRECISIONS, Machine, choose_compiled, choose_device, choose_precision
from eval.progress import print_progress
from losses import (
    CHUNK_BYTES,
    DIRECTIONS,
    IGNORED,
    WEIGHTS,
    DistillationLoss,
    add_up,
    fused_distillation_loss,
    mlm_loss,
)
from model import EncoderConfig, MaskedLM, ModelError, choose_layers, initialise_student, save_model

# ---- configuration ---------------------------------------------------------------------------------------------

BETAS, EPSILON = (0.9, 0.98), 1e-6  # AdamW's, as in the DistilBERT script that the authors started from
COMPILED_STEPS = 1000  # a shorter run is over before compiling has paid
HELD_OUT_BLOCKS = 256  # at most about so many are measured on, and never trained on
SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size")  # options of --teacher none


@dataclass(frozen=True)
class Options:
    """Every option of a run, with its default. They are saved with the student."""

    teacher: str = option(
        "demo", "model to distil: a file or folder of this project or of Hugging Face; or demo; or none, to train by "
        "masked LM alone", "what goes in and out", metavar="FILE"
    )  # fmt: skip
    tokenizer: str | None = option(
        None,
        "SentencePiece model, or its folder (default: the sentencepiece.bpe.model beside the teacher)",
        metavar="FILE",
    )
    corpus: tuple[str, ...] = option(
        ("demo",), "a folder that data.prepare made; or text, as data.prepare takes it, to be prepared first",
        nargs="+", metavar="PATH"
    )  # fmt: skip
    cache: str = option("runs/corpora", "folder for the corpora that are prepared first", metavar="FOLDER")
    out: str = option("runs/student", "folder for student.safetensors and metrics.jsonl", metavar="FOLDER")

    layers: tuple[str, ...] = option(
        ("alternate",), "teacher's layers that the student starts from, counted from 0: alternate (0, 2, 4, …), "
        "distilbert (0, 2, 4, 7, 9, 11) or a list such as 0 5 11", "the student and its loss", nargs="+"
    )  # fmt: skip
    direction: str = option(
        DIRECTIONS[0], "divergence of equation (10): student-teacher is D_KL(student || teacher)", choices=DIRECTIONS
    )
    temperature: float = option(1.0, "temperature of equation (10)", above=0)
    weights: tuple[float, ...] = option(
        WEIGHTS, "weights of equation (13)", nargs=3, type=float, metavar=("SOFT", "COS", "MLM"), least=0
    )
    dropout: float | None = option(
        None, "of the student while it learns (default: the teacher's; 0 is faster)", type=float, least=0, below=1
    )

    steps: int = option(300, "optimiser steps", "the optimiser", least=1, most=10**9)
    batch_size: int = option(8, "blocks a micro-step", least=1, most=10**6)
    accumulate: int = option(1, "micro-steps a step, whose gradients are added up", least=1, most=10**6)
    block_size: int = option(128, "tokens a block", least=3, most=10**5)
    within_documents: bool = option(False, "blocks that do not cross documents; what is left over is not trained on")
    masking: str = option(
        CHOICES[0], "what is masked together: single tokens; whole words; or tokens, rare ones more often "
        "(by count^-0.7, as the DistilBERT script does)", choices=CHOICES
    )  # fmt: skip
    lr: float = option(5e-4, "highest learning rate", above=0, most=1e30)
    warmup: float = option(0.05, "share of the steps in which the rate rises, before it falls", least=0, most=1)
    weight_decay: float = option(0.0, "AdamW's, on matrices only", least=0)
    clip: float = option(5.0, "norm that a longer gradient is shortened to", above=0)
    seed: int = option(0, "of initial values, order, masks and dropout", least=0, most=2**63 - 1)

    device: str = option("auto", "auto (CUDA where there is one, else CPU), cpu, cuda, cuda:1, …", "the machine")
    precision: str = option(
        "auto", "arithmetic of the matrix products; auto: bf16 where the device has it, else fp16 on CUDA, else fp32",
        choices=("auto", *PRECISIONS)
    )  # fmt: skip
    compile: str = option(
        "auto", "torch.compile for encoders and loss: slower to start, then faster; auto: where a compiler works, for "
        f"runs of at least {COMPILED_STEPS:,} steps", choices=("auto", "on", "off")
    )  # fmt: skip
    chunk_mb: int = option(CHUNK_BYTES >> 20, "megabytes that the loss takes for logits", least=1, most=10**6)
    log_every: int = option(10, "steps between progress lines", least=1)
    eval_every: int = option(0, "steps between measurements on held-out text, 0 for the end only", least=0)

    num_layers: int | None = option(
        None, "layers", "the student's size, with --teacher none only (default: DistilCamemBERT's; "
        "without --tokenizer, the demo's)",
        type=int, least=1, most=1000
    )  # fmt: skip
    hidden_size: int | None = option(None, "width", type=int, metavar="WIDTH", least=1, most=16384)
    num_heads: int | None = option(None, "attention heads", type=int, least=1, most=16384)
    intermediate_size: int | None = option(
        None, "width inside the feed-forward blocks", type=int, metavar="WIDTH", least=1, most=65536
    )

    def __post_init__(self):
        check_bounds(self)
        check(sum(self.weights) > 0, "--weights takes three numbers, and not three zeros.")
        for name in SIZES:
            unused = self.teacher == "none" or getattr(self, name) is None
            check(unused, f"{dashed(name)} goes with --teacher none: else the teacher decides it.")


# ---- set-up ----------------------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raises OptionError if the folder holds a run already, or cannot be written. Better now than after days."""
    for name in ("student.safetensors", "metrics.jsonl"):
        if (folder / name).exists():
            raise OptionError(f"{folder} holds the {name} of a run already. Choose another --out, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OptionError(f"--out {folder} cannot be written: {error.strerror}.") from None


def check_tokenizer_place(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises OptionError if another tokenizer than the run's lies where the run's will be put."""
    there = folder / FILE_NAME
    same = not there.exists() or there.read_bytes() == tokenizer.path.read_bytes()
    check(same, f"{there} is another tokenizer than {tokenizer.path}. Choose another --out, or remove it.")


# ---- data ------------------------------------------------------------------------------------------------------


def read_tokenizer(options: Options) -> Tokenizer:
    """The one named, else the one beside the teacher.  Raises DataError."""
    if options.tokenizer:
        return Tokenizer(options.tokenizer)
    if options.teacher == "demo" or (options.teacher == "none" and options.corpus == ("demo",)):
        return Tokenizer(demo.FOLDER)
    beside = None if options.teacher == "none" else tokenizer_beside(options.teacher)
    if beside is None:
        raise DataError(
            "No sentencepiece.bpe.model lies beside the teacher. Name CamemBERT's with --tokenizer "
            "(it is in every CamemBERT's folder on the hub)."
        )
    return Tokenizer(beside)


def read_corpus(options: Options, tokenizer: Tokenizer) -> tuple[Blocks, Blocks, Masking]:
    """The corpus, prepared now if it is not -> blocks to train on, blocks to measure on, their masking.

    Raises DataError.
    """
    if options.corpus == ("demo",):
        folder = prepare_into_cache([demo.write_texts(options.cache)], tokenizer, options.cache)
    elif len(options.corpus) == 1 and is_prepared(options.corpus[0]):
        folder = Path(options.corpus[0])
    else:
        folder = prepare_into_cache(options.corpus, tokenizer, options.cache)
    blocks, held_out = open_blocks(folder, tokenizer, options.block_size, options.within_documents)
    print(f"corpus    {folder}: {len(blocks):,} blocks of {options.block_size}, {len(held_out):,} held out")
    return blocks, held_out, Masking(tokenizer, options.masking, numpy.array(open_manifest(folder)["token_counts"]))


# ---- teacher and student ---------------------------------------------------------------------------------------


def read_teacher(options: Options, tokenizer: Tokenizer, device: torch.device) -> MaskedLM | None:
    """The teacher, frozen; None with --teacher none.  Raises ModelError, DataError."""
    if options.teacher == "none":
        return None
    path = demo.TEACHER if options.teacher == "demo" else options.teacher
    teacher = load_checkpoint(path, kind=MaskedLM)
    check_fit(teacher.config, tokenizer, options)
    return teacher.float().to(device).eval().requires_grad_(False)


def make_ready(student: MaskedLM, teacher: MaskedLM | None, machine: Machine) -> None:
    """The teacher's matrices in the run's precision, once: autocast would do it at every step. Compiled encoders.

    Compiled or not, a CPU draws its dropout by PyTorch's own generator, so that the masks are the same.
    """
    for module in teacher.modules() if teacher else ():
        if isinstance(module, nn.Linear) or module is teacher.encoder.embeddings.word:
            module.to(PRECISIONS[machine.precision])
    if machine.compiled:
        for model in filter(None, (student, teacher)):
            model.encoder.compile(dynamic=False, options={"fallback_random": machine.device.type == "cpu"})


def make_student(options: Options, teacher: MaskedLM | None, tokenizer: Tokenizer) -> MaskedLM:
    """Section 3.1: a part of the teacher; without one, a model of the sizes asked for.  Raises ModelError."""
    dropout = {} if options.dropout is None else {"dropout": options.dropout}
    if teacher is not None:
        layers = choose_layers(",".join(options.layers), teacher.config.num_layers)
        return initialise_student(teacher, layers, **dropout).train()
    sizes = {name: getattr(options, name) for name in SIZES if getattr(options, name) is not None}
    default = asdict(EncoderConfig.distilcamembert()) if options.tokenizer else demo.STUDENT
    config = EncoderConfig(**{**default, "vocab_size": len(tokenizer), **sizes, **dropout})
    check_fit(config, tokenizer, options)
    return MaskedLM(config).train()


def check_fit(config: EncoderConfig, tokenizer: Tokenizer, options: Options) -> None:
    """Raises DataError if model and tokenizer do not belong together, OptionError if a block is too long."""
    if len(tokenizer) != config.vocab_size or tokenizer.pad_id != config.pad_id:
        raise DataError(
            f"The tokenizer {tokenizer.path} has {len(tokenizer)} words and pads with {tokenizer.pad_id}, the model "
            f"has {config.vocab_size} and {config.pad_id}: they do not belong together. Name the teacher's own with "
            "--tokenizer."
        )
    check(
        options.block_size <= config.max_tokens,
        f"--block-size {options.block_size} is longer than the {config.max_tokens} tokens that the model can read.",
    )


# ---- the step --------------------------------------------------------------------------------------------------


def learning_rate(step: int, options: Options) -> float:
    """Of step 1, 2, …: a linear rise to --lr over the first --warmup of the steps, then a linear fall towards 0."""
    rise = round(options.warmup * options.steps)
    if step <= rise:
        return options.lr * step / rise
    return options.lr * (options.steps - step + 1) / (options.steps - rise)


def make_optimiser(student: MaskedLM, options: Options) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorms do not decay."""
    matrices = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in student.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=BETAS, eps=EPSILON, fused=True)


def accumulate_gradients(
    student: MaskedLM,
    teacher: MaskedLM | None,
    batches: list[Batch],
    options: Options,
    machine: Machine,
    scaler: torch.amp.GradScaler,
) -> DistillationLoss:
    """Adds the gradient of equation (13) over all micro-batches of a step; -> their sums and counts, detached.

    The means are global: each micro-batch's sums are divided by the counts of the whole step, which the data
    tell beforehand. So k micro-batches give the gradient of one batch k times as large.
    The batches come on the CPU, where they are counted; with a teacher, nothing in here waits for a GPU.
    """
    real_tokens = sum(int(batch.real.sum()) for batch in batches)
    masked_tokens = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
    terms = []
    for batch in batches:
        with machine.autocast():
            if teacher is None:
                total, micro_terms = masked_lm_loss(student, batch, masked_tokens, machine)
            else:
                total, micro_terms = loss(student, teacher, batch, real_tokens, masked_tokens, options, machine, scaler)
        scaler.scale(total).backward()
        terms.append(micro_terms)
    return add_up(terms)


def loss(
    student: MaskedLM,
    teacher: MaskedLM,
    batch: Batch,
    real_tokens: int,
    masked_tokens: int,
    options: Options,
    machine: Machine,
    scaler: torch.amp.GradScaler,
) -> tuple[torch.Tensor, DistillationLoss]:
    """A micro-batch's share of equation (13), whose means are over the tokens of the whole step; its terms as sums."""
    input_ids, _, real = batch.to(machine.device)
    with torch.no_grad():
        teacher_hidden = teacher.encoder(input_ids, real).flatten(0, 1)  # (N, d_t)
        teacher_state = teacher.transform(teacher_hidden)
    student_hidden = student.encoder(input_ids, real).flatten(0, 1)  # (N, d_s)
    return fused_distillation_loss(
        student.transform(student_hidden),
        student.decoder,
        student.bias,
        teacher_state,
        teacher.decoder,
        teacher.bias,
        batch.labels.flatten(),
        batch.real.flatten(),
        student_hidden,
        teacher_hidden,
        direction=options.direction,
        temperature=options.temperature,
        weights=options.weights,
        real_tokens=real_tokens,
        masked_tokens=masked_tokens,
        loss_scale=scaler.scale(torch.ones((), device=machine.device)),
        chunk_bytes=options.chunk_mb << 20,
        compiled=machine.compiled,
    )


def masked_lm_loss(
    student: MaskedLM, batch: Batch, masked_tokens: int, machine: Machine
) -> tuple[torch.Tensor, DistillationLoss]:
    """The same without a teacher: equation (12) alone. Only the masked tokens go through the decoder."""
    input_ids, labels, real = batch.to(machine.device)
    masked = labels != IGNORED
    mlm, count = mlm_loss(student.head(student.encoder(input_ids, real)[masked]), labels[masked])
    none = torch.zeros_like(mlm)
    return mlm / max(masked_tokens, 1), DistillationLoss(none, none, mlm.detach(), batch.real.sum(), count)


def optimiser_step(
    student: MaskedLM, optimiser: torch.optim.AdamW, scaler: torch.amp.GradScaler, rate: float, options: Options
) -> torch.Tensor:
    """Clip, step, forget the gradient.  -> the gradient's length before clipping, ()"""
    for group in optimiser.param_groups:
        group["lr"] = rate
    scaler.unscale_(optimiser)
    length = nn.utils.clip_grad_norm_(student.parameters(), options.clip)
    scaler.step(optimiser)  # left out where fp16 overflowed
    scaler.update()
    optimiser.zero_grad(set_to_none=True)
    return length


# ---- the loop --------------------------------------------------------------------------------------------------


REMEDY = "Try a smaller --lr, a longer --warmup, or --precision fp32."


def train(options: Options) -> None:
    """The whole run.  Raises OptionError, DataError, ModelError before the first step, Diverged after it."""
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    folder = Path(options.out)
    check_folder(folder)
    torch.manual_seed(options.seed)

    tokenizer = read_tokenizer(options)
    check_tokenizer_place(folder, tokenizer)
    teacher = read_teacher(options, tokenizer, device)
    student = make_student(options, teacher, tokenizer).to(device)
    describe_run(options, teacher, student, device, precision)
    machine = Machine(device, precision, choose_compiled(options.compile, device, options.steps >= COMPILED_STEPS))
    make_ready(student, teacher, machine)
    blocks, held_out, masking = read_corpus(options, tokenizer)
    measured_on = measuring_batches(held_out, Masking(tokenizer), HELD_OUT_BLOCKS)
    micro_batches = training_batches(blocks, masking, options.batch_size, options.seed)
    optimiser = make_optimiser(student, options)
    scaler = machine.scaler()

    accuracy = {"teacher": masked_accuracy(teacher, measured_on, machine.autocast)} if teacher else {}
    accuracy["student before"] = masked_accuracy(student, measured_on, machine.autocast)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as metrics:
        since_log, clock, spent = [], time.monotonic(), 0.0
        for step in range(1, options.steps + 1):
            batches = list(islice(micro_batches, options.accumulate))
            since_log.append(accumulate_gradients(student, teacher, batches, options, machine, scaler))
            gradient = optimiser_step(student, optimiser, scaler, learning_rate(step, options), options)
            if step == 1 and machine.compiled:
                print(f"compiled  the first step took {time.monotonic() - clock:.0f} s")
            measured = step == options.steps or (options.eval_every and step % options.eval_every == 0)
            if step % options.log_every and not measured:
                continue
            record = describe_step(step, add_up(since_log), gradient, teacher is not None, options)
            seconds, since_log = time.monotonic() - clock, []
            spent += seconds
            record["tokens_per_second"] = round(record["tokens"] / seconds, 1)
            print_progress(record, options.steps, time_left=spent / step * (options.steps - step))
            if measured:
                record["held_out_accuracy"] = masked_accuracy(student, measured_on, machine.autocast)
                print(f"          held-out masked tokens guessed right: {record['held_out_accuracy']:.1%}", flush=True)
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            clock = time.monotonic()
    accuracy["student after"] = record["held_out_accuracy"]
    finish(options, student, tokenizer, accuracy, folder)


def describe_run(
    options: Options, teacher: MaskedLM | None, student: MaskedLM, device: torch.device, precision: str
) -> None:
    """What is about to happen, on screen."""
    if teacher is not None:
        print(f"teacher   {options.teacher}: {shape(teacher.config)}")
        layers = ", ".join(map(str, choose_layers(",".join(options.layers), teacher.config.num_layers)))
        print(f"student   {shape(student.config)}, from the teacher's layers {layers}")
        print(f"loss      {' + '.join(f'{w:g} {n}' for w, n in zip(options.weights, ('soft', 'cosine', 'mlm')))}, "
              f"{options.direction}, temperature {options.temperature:g}")  # fmt: skip
    else:
        print(f"student   {shape(student.config)}, from random numbers")
        print("loss      masked LM alone")
    tokens = options.batch_size * options.accumulate * options.block_size
    print(f"run       {options.steps} steps of {tokens:,} tokens on {device}, {precision}, torch {torch.__version__}")
    if options.corpus == ("demo",):
        print("note      the corpus is a demo: a small made-up world of French sentences. It shows that all works;")
        print("          for a student that knows French, name real text with --corpus.")


def shape(config: EncoderConfig) -> str:
    return f"{config.num_layers} layers of {config.hidden_size}, {config.num_heads} heads, {config.vocab_size:,} words"


def describe_step(step: int, sums: DistillationLoss, gradient: torch.Tensor, distils: bool, options: Options) -> dict:
    """The line of metrics.jsonl: means over all tokens since the last line.  Raises Diverged."""
    weights = options.weights if distils else (0.0, 0.0, 1.0)
    soft_label, cosine, mlm = (mean.item() for mean in sums.means())
    loss = sums.total(weights).item()
    if not math.isfinite(loss):
        raise Diverged(f"The loss is {loss} at step {step}.")
    return {
        "step": step,
        "loss": loss,
        "soft_label_loss": soft_label if distils else None,
        "cosine_loss": cosine if distils else None,
        "mlm_loss": mlm,
        "learning_rate": learning_rate(step, options),
        "gradient_norm": gradient.item() if gradient.isfinite() else None,  # where fp16 overflowed
        "tokens": int(sums.real_tokens),
    }


# ---- the end ---------------------------------------------------------------------------------------------------


def finish(options: Options, student: MaskedLM, tokenizer: Tokenizer, accuracy: dict[str, float], folder: Path) -> None:
    """Save the student with its tokenizer beside it, and say what came out."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    provenance = {"options": asdict(options), "versions": versions, "held_out_accuracy": accuracy}
    save_model(student, folder / "student.safetensors", provenance)
    if not (folder / FILE_NAME).exists():
        shutil.copyfile(tokenizer.path, folder / FILE_NAME)
    print("\nHeld-out masked tokens guessed right:")
    for name, share in accuracy.items():
        print(f"  {name:15} {share:6.1%}")
    print(f"\nWritten: {folder / 'student.safetensors'}, with its tokenizer and metrics.jsonl beside it.")
    if options.teacher == "demo":
        print("That was the demo. The real thing, with CamemBERT's files from the hub and your text:")
        print("  python train.py --teacher camembert-base/model.safetensors --corpus texts/ --steps 100000 \\")
        print("                  --accumulate 16 --out runs/distilcamembert")
    else:
        print("To open it with transformers:")
        print(f"  python convert_weights.py {folder / 'student.safetensors'} {folder / 'huggingface'} --to hf")


def main(arguments: list[str] | None = None) -> None:
    train(parse_options(Options, arguments, "python train.py [OPTIONS]", __doc__))


if __name__ == "__main__":
    try:
        main()
    except (OptionError, DataError, ModelError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that went away
        print(f"train.py: {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(f"train.py: {error} {REMEDY}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted; the student was not saved.", file=sys.stderr)
        sys.exit(130)
