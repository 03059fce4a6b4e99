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

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
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
from data.shuffle import key_of
from data.tokenizer import FILE_NAME, tokenizer_beside
from eval.account import Account, Totals
from eval.checkpoints import RUN, Writer, check_same_run, clean, fingerprint, gather, newest, restore
from eval.held_out import Diverged, measure_held_out
from eval.machine import PRECISIONS, Machine, choose_compiled, choose_device, choose_precision, peak_speed
from eval.processes import ALONE, Processes, Stop, join_processes
from eval.progress import Screen, describe_run, describe_step, draw_curves, print_summary
from eval.results import versions
from losses import (
    CHUNK_BYTES,
    DIRECTIONS,
    IGNORED,
    WEIGHTS,
    DistillationLoss,
    fused_distillation_loss,
    mlm_loss,
)
from model import EncoderConfig, MaskedLM, ModelError, choose_layers, initialise_student, save_model

# ---- configuration ---------------------------------------------------------------------------------------------

BETAS, EPSILON = (0.9, 0.98), 1e-6  # AdamW's, as in the DistilBERT script that the authors started from
MAY_DIFFER = (  # options that decide nothing about the student: a run can go on with others
    "out", "device", "cache", "log_every", "eval_every", "checkpoint_every", "keep", "resume", "max_hours",
    "max_skipped", "tensorboard",
)  # fmt: skip
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
    out: str = option("runs/student", "folder for student.safetensors, metrics.jsonl and checkpoints", metavar="FOLDER")
    student: str | None = option(
        None, "student to go on from, a masked LM of the teacher's vocabulary (default: the teacher's --layers)",
        metavar="FILE"
    )  # fmt: skip

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
    accumulate: int = option(
        1, "micro-steps a step, whose gradients are added up; several processes share them", least=1, most=10**6
    )
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
    log_every: int = option(10, "steps between progress lines", "what is kept and shown", least=1)
    eval_every: int = option(0, "steps between measurements on held-out text, 0 for the end only", least=0)
    checkpoint_every: int = option(1000, "steps between checkpoints, 0 for none but where a run is stopped", least=0)
    keep: int = option(2, "checkpoints that are kept", least=1)
    resume: bool = option(True, "go on with the run that --out holds, if its options are the same")
    max_hours: float | None = option(
        None, "write a checkpoint and end after so many hours; the same command goes on", type=float, above=0
    )
    max_skipped: int = option(20, "steps in a row without a finite gradient, after which the run is given up", least=1)
    tensorboard: bool = option(False, "curves for TensorBoard too, in --out (needs tensorboard)")

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
        check(self.student is None or self.layers == ("alternate",), "--layers goes without --student: it has its own.")


# ---- set-up ----------------------------------------------------------------------------------------------------


def check_folder(folder: Path, resume: bool) -> None:
    """Raises OptionError if the folder holds what is no run to go on with, or cannot be written."""
    is_run = (folder / RUN).exists()
    for name in ("student.safetensors", "metrics.jsonl", RUN):
        if (folder / name).exists() and not (is_run and resume):
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


def read_corpus(options: Options, tokenizer: Tokenizer) -> tuple[Blocks, Blocks, Masking, list[str]]:
    """The corpus, prepared now if it is not -> blocks to train on, blocks to measure on, masking, the shards' hashes.

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
    manifest = open_manifest(folder)
    masking = Masking(tokenizer, options.masking, numpy.array(manifest["token_counts"]))
    return blocks, held_out, masking, [shard["sha256"] for part in manifest["shards"].values() for shard in part]


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
    if teacher:
        machine.cast_products(teacher)
        teacher.encoder.embeddings.word.to(PRECISIONS[machine.precision])  # the decoder is that matrix
    if machine.compiled:
        for model in filter(None, (student, teacher)):
            model.encoder.compile(dynamic=False, options={"fallback_random": machine.device.type == "cpu"})


def make_student(options: Options, teacher: MaskedLM | None, tokenizer: Tokenizer) -> MaskedLM:
    """Section 3.1: a part of the teacher, the one named, or of the sizes asked for.  Raises ModelError, DataError."""
    dropout = {} if options.dropout is None else {"dropout": options.dropout}
    if options.student is not None:
        start = load_checkpoint(options.student, kind=MaskedLM)
        check_fit(start.config, tokenizer, options)
        return initialise_student(start.float(), range(start.config.num_layers), **dropout).train()
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
    check_together(config, tokenizer)
    check(
        options.block_size <= config.max_tokens,
        f"--block-size {options.block_size} is longer than the {config.max_tokens} tokens that the model can read.",
    )


def check_together(config: EncoderConfig, tokenizer: Tokenizer) -> None:
    """Raises DataError if model and tokenizer do not belong together."""
    if len(tokenizer) != config.vocab_size or tokenizer.pad_id != config.pad_id:
        raise DataError(
            f"The tokenizer {tokenizer.path} has {len(tokenizer)} words and pads with {tokenizer.pad_id}, the model "
            f"has {config.vocab_size} and {config.pad_id}: they do not belong together. Name the model's own with "
            "--tokenizer."
        )


# ---- the step --------------------------------------------------------------------------------------------------


class Trainee(nn.Module):
    """What is trained: the student, and where the teacher has another width, a projection for equation (11)."""

    def __init__(self, student: MaskedLM, teacher: MaskedLM | None, options: "Options"):
        super().__init__()
        self.student = student
        width, other = student.config.hidden_size, teacher.config.hidden_size if teacher else None
        self.projection = nn.Linear(width, other) if teacher and other != width and options.weights[1] else None

    def forward(
        self,
        teacher: MaskedLM | None,
        batch: Batch,
        real_tokens: int,
        masked_tokens: int,
        options: "Options",
        machine: Machine,
        scaler: torch.amp.GradScaler,
    ) -> tuple[torch.Tensor, DistillationLoss]:
        """A micro-batch's share of equation (13), whose means are over the tokens of the whole step; its terms."""
        student = self.student
        if teacher is None:
            return masked_lm_loss(student, batch, masked_tokens, machine)
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
            student_hidden if self.projection is None else self.projection(student_hidden),  # (N, d_t)
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


def learning_rate(step: int, options: Options) -> float:
    """Of step 1, 2, …: a linear rise to --lr over the first --warmup of the steps, then a linear fall towards 0."""
    rise = round(options.warmup * options.steps)
    if step <= rise:
        return options.lr * step / rise
    return options.lr * (options.steps - step + 1) / (options.steps - rise)


def make_optimiser(trainee: nn.Module, options: Options) -> torch.optim.AdamW:
    """AdamW; biases and LayerNorms do not decay."""
    matrices = [parameter for parameter in trainee.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in trainee.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=BETAS, eps=EPSILON, fused=True)


def accumulate_gradients(
    trainee: nn.Module,
    teacher: MaskedLM | None,
    batches: list[Batch],
    options: Options,
    machine: Machine,
    scaler: torch.amp.GradScaler,
    processes: Processes = ALONE,
    step: int = 0,
) -> torch.Tensor:
    """Adds the gradient of equation (13) over all micro-batches of a step; -> their sums and counts, (5,) float64

    The means are global: each micro-batch's sums are divided by the counts of the whole step, of all processes, which
    the data tell beforehand. So k micro-batches give the gradient of one batch k times as large, whoever computes them.
    The batches come on the CPU, where they are counted; with a teacher, nothing in here waits for a GPU.
    """
    counted = [(batch.real.sum(), (batch.labels != IGNORED).sum()) for batch in batches]
    real_tokens, masked_tokens = processes.sum(torch.tensor(counted).sum(dim=0)).tolist()
    sums = torch.zeros(5, dtype=torch.float64, device=machine.device)
    for number, batch in enumerate(batches):
        # Dropout is that of this step and micro-step, whichever process computes it, after whatever it did before.
        torch.manual_seed(int(key_of(options.seed, step, processes.rank + number * processes.count) >> numpy.uint64(1)))
        inner = processes.count > 1 and number < len(batches) - 1  # no all-reduce yet
        with trainee.no_sync() if inner else contextlib.nullcontext():
            with machine.autocast():
                total, terms = trainee(teacher, batch, real_tokens, masked_tokens, options, machine, scaler)
            scaler.scale(total * processes.count).backward()  # DistributedDataParallel takes the mean over processes
        sums += torch.stack([term.to(machine.device, torch.float64) for term in terms])
    return sums


def optimiser_step(
    trainee: nn.Module, optimiser: torch.optim.AdamW, scaler: torch.amp.GradScaler, rate: float, options: Options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip, step, forget the gradient; without a finite gradient, no step.

    -> the gradient's length before clipping, whether the step was left out, (), (): nothing here waits for a GPU.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    scaler.unscale_(optimiser)
    length = nn.utils.clip_grad_norm_(trainee.parameters(), options.clip)
    skipped = ~length.isfinite()
    if not scaler.is_enabled():  # it looks for itself, and halves its scale
        optimiser.found_inf = skipped.float()  # heeded by the fused AdamW
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad(set_to_none=True)
    return length, skipped


# ---- the loop --------------------------------------------------------------------------------------------------


REMEDY = "Try a smaller --lr, a longer --warmup, or --precision fp32."


def train(options: Options) -> int:
    """The whole run -> exit status: 0, or 128 + n where signal n stopped it with a checkpoint.

    Raises OptionError, DataError, ModelError for what it cannot go on with, Diverged where the loss is lost.
    """
    with join_processes(options.device) as (processes, device_name):
        if processes.first:
            return run(options, processes, choose_device(device_name))
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            return run(options, processes, choose_device(device_name))


def run(options: Options, processes: Processes, device: torch.device) -> int:
    """One process's part in it."""
    stop = Stop(options.max_hours)
    folder = Path(options.out)
    count = processes.count
    micro_steps, rest = divmod(options.accumulate, count)
    check(not rest, f"--accumulate {options.accumulate} cannot be shared out among {count} processes: take a multiple.")
    if processes.first:
        check_folder(folder, options.resume)
    torch.manual_seed(options.seed)
    machine = Machine(device, choose_precision(options.precision, device))
    tokenizer = read_tokenizer(options)
    check_tokenizer_place(folder, tokenizer)
    teacher = read_teacher(options, tokenizer, device)
    trainee = Trainee(make_student(options, teacher, tokenizer), teacher, options).to(device)
    describe_run(options, teacher, trainee.student, machine, processes)
    with in_turn(processes):
        blocks, held_out, masking, corpus = read_corpus(options, tokenizer)
    if processes.first:
        inputs = {"corpus": corpus, "teacher": fingerprint(teacher) if teacher else None}
        check_same_run(folder, {"options": asdict(options), "inputs": inputs}, MAY_DIFFER)
        clean(folder)
    processes.wait()
    if (folder / "student.safetensors").exists() and (folder / RUN).exists():
        print(f"\nThe run in {folder} is finished. Choose another --out for a new one.")
        return 0

    optimiser, scaler, account = make_optimiser(trainee, options), machine.scaler(), Account()
    done = newest(folder, lambda line: print(f"warning: {line}", file=sys.stderr))
    if done:
        account = Account.of(restore(done, trainee, optimiser, scaler))
        print(f"resumed   after step {account.step:,}, from {done.path}")
    machine = replace(machine, compiled=choose_compiled(options.compile, device, options.steps >= COMPILED_STEPS))
    make_ready(trainee.student, teacher, machine)
    engine = trainee
    if count > 1:
        unused = not (options.weights[0] or options.weights[2])  # by the loss: the LM head
        engine = nn.parallel.DistributedDataParallel(trainee, find_unused_parameters=unused)
    measured_on = measuring_batches(held_out, Masking(tokenizer), HELD_OUT_BLOCKS)[processes.rank :: count]
    first = (account.step * options.accumulate + processes.rank) * options.batch_size
    stride = count * options.batch_size
    micro_batches = training_batches(blocks, masking, options.batch_size, options.seed, first, stride)

    def measure() -> dict[str, float]:
        return measure_held_out(trainee.student, teacher, measured_on, options, machine, processes)

    if not account.baseline:
        before = measure()
        account.baseline = {"teacher": before["teacher_accuracy"]} if teacher else {}
        account.baseline["student before"] = before["accuracy"]
    weights = options.weights if teacher else (0.0, 0.0, 1.0)
    writer, totals, started = Writer(folder, options.keep), Totals(weights), account.step
    configs = trainee.student.config, teacher.config if teacher else None
    peak = peak_speed(machine, *configs, options.block_size)
    record, status, clock = {}, None, time.monotonic()
    with Screen(folder, options, account, processes.first) as screen, stop:
        while account.step < options.steps and status is None:
            step = account.step + 1
            batches = list(islice(micro_batches, micro_steps))
            sums = accumulate_gradients(engine, teacher, batches, options, machine, scaler, processes, step)
            gradient, skipped = optimiser_step(trainee, optimiser, scaler, learning_rate(step, options), options)
            totals.add(sums, skipped)
            account.step = step
            if step == started + 1 and machine.compiled:
                print(f"compiled  the first step took {time.monotonic() - clock:.0f} s")
            last = step == options.steps
            status = None if last else stop.now(processes)
            measured = last or (options.eval_every and step % options.eval_every == 0)
            logged = measured or step % options.log_every == 0
            saved = status is not None or (options.checkpoint_every and step % options.checkpoint_every == 0)
            if logged or saved:
                totals.settle(account, options.max_skipped, processes)
                account.since_line += time.monotonic() - clock
                account.seconds += time.monotonic() - clock
            if logged:
                record = describe_step(account, gradient, learning_rate(step, options), weights, options, peak)
                if measured:
                    record["held_out"] = measure()
                    keep_best(record["held_out"]["loss"], trainee.student, account, folder, processes)
                account.metrics_bytes = screen.show(record, account.seconds / step * (options.steps - step))
                account.new_line()
            if saved and processes.first:
                numbers = {"options": asdict(options), "versions": versions(), **account.as_values()}
                kept = writer.save(step, trainee.student, *gather(trainee, optimiser, scaler, numbers))
            if logged or saved:
                clock = time.monotonic()
        writer.wait()
    if status is not None:
        if processes.first:
            print(f"Stopped after step {account.step:,}, with {kept}. The same command goes on.", file=sys.stderr)
        return status
    figures = record["held_out"] if record else measure()  # measured here if the run was killed after its last step
    if processes.first:
        finish(options, trainee.student, tokenizer, account, figures, folder)
    return 0


@contextlib.contextmanager
def in_turn(processes: Processes) -> Iterator[None]:
    """The first alone, then the others: it leaves them what it has prepared."""
    if not processes.first:
        processes.wait()
    yield
    if processes.first:
        processes.wait()


def keep_best(loss: float, student: MaskedLM, account: Account, folder: Path, processes: Processes) -> None:
    """best.safetensors: the student with the lowest loss on held-out text so far."""
    if account.best_loss is None or loss < account.best_loss:
        account.best_loss = loss
        if processes.first:
            save_model(student, folder / "best.safetensors", {"step": account.step, "held_out_loss": loss})


# ---- the end ---------------------------------------------------------------------------------------------------


def finish(
    options: Options, student: MaskedLM, tokenizer: Tokenizer, account: Account, held_out: dict, folder: Path
) -> None:
    """Save the student with its tokenizer beside it, and say what came out."""
    accuracy = {**account.baseline, "student after": held_out["accuracy"]}
    provenance = {"options": asdict(options), "versions": versions()}
    provenance |= {"held_out_accuracy": accuracy, "held_out": held_out}
    if not (folder / FILE_NAME).exists():
        shutil.copyfile(tokenizer.path, folder / FILE_NAME)
    save_model(student, folder / "student.safetensors", provenance)
    print_summary(accuracy, held_out)
    draw_curves(folder)
    print(f"\nWritten: {folder / 'student.safetensors'}, with its tokenizer and metrics.jsonl beside it.")
    if options.teacher == "demo":
        print("That was the demo. The real thing, with CamemBERT's files from the hub and your text:")
        print("  python train.py --teacher camembert-base/model.safetensors --corpus texts/ --steps 100000 \\")
        print("                  --accumulate 16 --out runs/distilcamembert")
    else:
        print("To open it with transformers:")
        print(f"  python convert_weights.py {folder / 'student.safetensors'} {folder / 'huggingface'} --to hf")


def main(arguments: list[str] | None = None) -> int:
    return train(parse_options(Options, arguments, "python train.py [OPTIONS]", __doc__))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OptionError, DataError, ModelError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder that went away
        print(f"train.py: {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
        sys.exit(2)
    except Diverged as error:
        print(f"train.py: {error} {REMEDY}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:  # before the first step, where there is nothing to keep
        print("\ntrain.py: interrupted.", file=sys.stderr)
        sys.exit(130)
