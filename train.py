"""Distils a CamemBERT into a student with half its layers: section 3 of the paper.

python train.py
    a demo without any input, about a minute on two cores
python train.py --teacher camembert.safetensors --corpus texts/ --steps 100000 --accumulate 16 \\
                --out runs/distilcamembert
    the real model, also --teacher almanach/camembert-base; --plan first says what the run will do and cost
python train.py --teacher none --tokenizer sentencepiece.bpe.model --corpus texts/
    masked LM without a teacher: the baseline without distillation
"""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages for a CPU's large tensors; read when torch is imported
if "WORLD_SIZE" in os.environ:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no C++ stack traces of a lost store

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from data import demo
from data.blocks import Batch, open_blocks, prefetched, training_batches, validation_batches
from data.cache import DEMO, prepared_folder, sample_folder
from data.cli import check, parse_options, run_command, say, warn
from data.corpus.files import check_corpus
from data.corpus.shuffle import key_of
from data.download.models import fetch_models
from data.locks import own
from data.masking import Masking
from data.tokenizer import Tokenizer
from data.versions import versions
from eval.validation import VALIDATION_BLOCKS, encoder_speeds, validate
from losses import IGNORE_INDEX, LossSettings, fused_distillation_loss, mlm_loss
from losses.fused import to_device
from model import EncoderConfig, MaskedLM, ModelError, choose_layers, initialise_student, save_model
from model.checkpoints.load import check_vocabulary, load_checkpoint, load_teacher, load_tokenizer
from model.checkpoints.native import fingerprint
from model.checkpoints.provenance import origins
from model.dropout import set_dropout
from model.training import log, plan, report, run_folder, run_state
from model.training.curves import draw_curves
from model.training.device import (
    Runtime,
    choose_compiled,
    choose_device,
    choose_precision,
    peak_tokens_per_second,
    prepare_models,
    seed_generators,
    set_up_process,
    training_flops,
)
from model.training.distributed import SINGLE, World, join_world, meet, parsed
from model.training.extra_terms import NO_EXTRA_TERMS, ExtraTerms, choose_extra_terms
from model.training.optim import learning_rate, make_optimiser, optimiser_step
from model.training.options import COMPILE_STEPS, ON_MEMORY, SIZES, Options
from model.training.state import Diverged, PendingLosses
from model.training.stop import Stop
from model.training.watch import Watch

# ---- teacher and student ---------------------------------------------------------------------------------------


def load_models(options: Options, device: torch.device) -> tuple[Tokenizer, MaskedLM | None, MaskedLM, str]:
    """-> the tokenizer, the frozen teacher or None, the student, and where it starts from.  Raises ModelError."""
    path = {"none": None, "demo": demo.TEACHER}.get(options.teacher, options.teacher)
    tokenizer = load_tokenizer(options.tokenizer, path, options.student, options.is_demo and demo.FOLDER)
    teacher = load_teacher(path, MaskedLM, device) if path else None
    student, start = make_student(options, teacher, len(tokenizer))
    set_dropout(student, options.dropout)
    for model in filter(None, (teacher, student)):
        check_vocabulary(model.config, tokenizer)
        longest = model.config.max_tokens
        check(options.block_size <= longest, f"--block-size {options.block_size} exceeds the model's {longest} tokens.")
    return tokenizer, teacher, student, start


def make_student(options: Options, teacher: MaskedLM | None, vocab_size: int) -> tuple[MaskedLM, str]:
    """Section 3.1: layers of the teacher; or the given student; or a new model -> it, and where it starts from."""
    if options.student is not None:
        student = load_checkpoint(options.student, kind=MaskedLM).float()
        return initialise_student(student, range(student.config.num_layers)), options.student
    if teacher is not None:
        layers = choose_layers(",".join(options.layers), teacher.config.num_layers)
        return initialise_student(teacher, layers), f"teacher layers {', '.join(map(str, layers))}"
    sizes = {name: getattr(options, name) for name in SIZES if getattr(options, name) is not None}
    default = asdict(EncoderConfig.distilcamembert()) if options.tokenizer else demo.STUDENT
    return MaskedLM(EncoderConfig(**{**default, "vocab_size": vocab_size, **sizes})), "random initial values"


# ---- the distillation step -------------------------------------------------------------------------------------


class Distiller(nn.Module):
    """The student with equation (13), and a learned projection for (11) if the teacher has another width."""

    def __init__(
        self,
        student: MaskedLM,
        teacher: MaskedLM | None,
        settings: LossSettings,
        runtime: Runtime,
        extra: ExtraTerms = NO_EXTRA_TERMS,
    ):
        super().__init__()
        self.student, self.settings, self.runtime, self.extra = student, settings, runtime, extra
        width, teacher_width = student.config.hidden_size, teacher.config.hidden_size if teacher else None
        needed = teacher and teacher_width != width and settings.weights[1]
        self.projection = nn.Linear(width, teacher_width) if needed else None

    def forward(
        self, teacher: MaskedLM | None, batch: Batch, real_tokens: int, masked_tokens: int, loss_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Equations (10) to (13) of a micro-batch, divided by the token counts of the whole step -> total, sums.

        sums: of the three terms, (3,), or with the two beyond the paper (5,).
        The teacher is an argument and not a submodule: it is neither trained nor saved.
        """
        if self.runtime.uses_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # no output of an earlier micro-batch's graphs is needed
        with self.runtime.autocast():
            if teacher is None:
                return self.masked_lm(batch, masked_tokens)
            student, on_device = self.student, batch.to(self.runtime.device)
            with torch.no_grad():
                teacher_states = self.extra.hidden_states(teacher, on_device)
                teacher_hidden = teacher_states[-1].flatten(0, 1)  # (N, d_t)
                teacher_state = teacher.transform(teacher_hidden)
            student_states = self.extra.hidden_states(student, on_device)
            student_hidden = student_states[-1].flatten(0, 1)  # (N, d_s)
            total, terms = fused_distillation_loss(
                *(student.transform(student_hidden), student.decoder, student.bias),
                *(teacher_state, teacher.decoder, teacher.bias),
                *(batch.labels.flatten(), batch.real.flatten()),
                student_hidden if self.projection is None else self.projection(student_hidden),  # (N, d_t)
                teacher_hidden,
                real_tokens=real_tokens,
                masked_tokens=masked_tokens,
                loss_scale=loss_scale,
                **self.settings._asdict(),
            )
            sums = torch.stack(terms[:3])
            if self.extra.are_used:
                extra = self.extra.sums(student, student_states, teacher, teacher_states, on_device.real)  # (2,)
                weighted = self.extra.weights[0] * extra[0] + self.extra.weights[1] * extra[1]
                total, sums = total + weighted / max(real_tokens, 1), torch.cat([sums, extra.detach()])
            return total, sums

    def masked_lm(self, batch: Batch, masked_tokens: int) -> tuple[Tensor, Tensor]:
        """Without a teacher: equation (12) alone. Only the masked tokens go through the LM head."""
        input_ids, labels, real, has_padding = batch.to(self.runtime.device)
        masked = labels != IGNORE_INDEX
        hidden = self.student.encoder(input_ids, real, has_padding=has_padding)
        mlm, _ = mlm_loss(self.student.head(hidden[masked]), labels[masked])
        zero = torch.zeros_like(mlm)
        return mlm / max(masked_tokens, 1), torch.stack([zero, zero, mlm.detach()])


def backward(
    distiller: nn.Module,
    teacher: MaskedLM | None,
    batches: Sequence[Batch],
    scaler: torch.amp.GradScaler,
    world: World = SINGLE,
    dropout_key: tuple[int, int] = (0, 0),
) -> Tensor:
    """Adds up the gradient of equation (13) over a step's micro-batches -> their sums and counts, float64

    (5,) as in DistillationLoss, or with the terms beyond the paper (7,).

    The means are global: each micro-batch is divided by the token counts of the whole step, over all ranks. So k
    micro-batches give the gradient of one batch k times as large, whichever ranks compute them. The counts come from
    the batches, which are on the CPU: with a teacher, nothing here waits for a GPU.
    dropout_key: seed and step. Dropout depends on them and on the micro-batch, not on the rank that computes it.
    """
    counts = sum(torch.stack([batch.real.sum(), (batch.labels != IGNORE_INDEX).sum()]) for batch in batches)  # (2,)
    real_tokens, masked_tokens = world.sum(counts).tolist()
    sums, device = 0, next(distiller.parameters()).device
    loss_scale = scaler.scale(torch.ones((), device=device))
    for number, batch in enumerate(batches):
        seed_generators(int(key_of(*dropout_key, world.rank + number * world.size) >> numpy.uint64(1)), device)
        is_last = number == len(batches) - 1  # gradients are averaged over the ranks with the last micro-batch only
        with contextlib.nullcontext() if is_last or world.size == 1 else distiller.no_sync():
            total, terms = distiller(teacher, batch, real_tokens, masked_tokens, loss_scale)
            scaler.scale(total * world.size).backward()  # DistributedDataParallel takes the mean over ranks
        sums = sums + terms.double()
    return torch.cat([sums[:3], to_device(counts.double(), sums.device), sums[3:]])


# ---- the run ---------------------------------------------------------------------------------------------------


def train(options: Options, watch: Watch | None = None) -> int:
    """A whole run, on each rank -> exit status: 0, or 128 + n if signal n stopped it with a checkpoint.

    Raises OptionError, DataError or ModelError if the run cannot start, Diverged if its loss is no longer finite.
    """
    if watch is not None:
        watch.timeout = options.timeout
        watch.advice = partial(run_folder.how_to_go_on, Path(options.out), options.accumulate, watch.size)
    with join_world(watch, options.device) as (world, device_name):
        world.compare(options.of_all_ranks() | versions())
        rest = options.accumulate % world.size
        check(not rest, f"--accumulate {options.accumulate} must be a multiple of the {world.size} ranks.")
        check_corpus(() if options.corpus == DEMO else options.corpus)
        with world.main_first():
            found = fetch_models(options, "teacher", "student", "tokenizer")
        if not world.is_main:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                return run(options, found, world, choose_device(device_name))
        out = Path(options.out)
        with contextlib.nullcontext() if options.plan else own(out, options.wait):
            run_folder.check_free(out, options.resume)
            return run(options, found, world, choose_device(device_name))


def run(options: Options, found: Options, world: World, device: torch.device) -> int:
    """found: the options, with the paths of the models that they name."""
    stop, out = Stop(options.max_hours, world.is_main), Path(options.out)
    set_up_process(device)
    torch.manual_seed(options.seed)
    runtime = Runtime(device, choose_precision(options.precision, device))

    # ---- teacher and student
    tokenizer, teacher, student, start = load_models(found, device)
    weights = options.weights if teacher else (0.0, 0.0, 1.0)
    report.print_models(found.teacher, teacher and teacher.config, student.config, start)
    extra = choose_extra_terms(found, teacher, student)
    loss_weights = (*weights, *extra.weights)
    report.print_loss(loss_weights if teacher else None, options.direction, options.temperature)
    per_rank, blocks_per_step = options.accumulate // world.size, options.batch_size * options.accumulate

    # ---- data
    with world.main_first():
        sample = sample_folder(options.corpus, tokenizer, options.cache) if options.plan else None
        corpus = sample.folder if sample else prepared_folder(options.corpus, tokenizer, options.cache)
    blocks, held_out = open_blocks(corpus, tokenizer, options.block_size, options.within_documents)
    available = len(blocks) if sample is None else sample.share and len(blocks) / sample.share
    known = student.config.hidden_size, teacher is not None, available
    options, found = options.complete(*known), found.complete(*known)
    steps = options.steps
    work = plan.Work(0, steps, blocks_per_step, options.block_size, options.eval_every)
    folder = None if sample and sample.temporary else corpus
    report.print_corpus(None if options.corpus == DEMO else options.corpus, folder, len(held_out))
    report.print_run(work, options.lr, available, sample.estimate if sample else "", runtime, world.size)
    masking = Masking(tokenizer, options.masking, numpy.array(blocks.manifest["token_counts"]), options.masking_rate)
    validation = validation_batches(held_out, Masking(tokenizer), VALIDATION_BLOCKS)[world.rank :: world.size]

    # ---- a new run, or one to resume
    inputs = {"teacher": teacher and fingerprint(teacher), "tokenizer": tokenizer.sha256(), "corpus": blocks.hashes()}
    inputs["student"] = fingerprint(student) if options.student else None  # of which the run began
    if sample and sample.share != 1:
        del inputs["corpus"]
    identity = {"options": asdict(options), "inputs": inputs}
    stored = run_folder.find_run(out, identity) if world.is_main else None
    if stored and not sample:
        run_folder.write_run(out, stored)  # if it was lost
    finished = run_folder.is_finished(out, steps, warn)
    world.compare({**inputs, "finished run in --out": finished, "precision": runtime.precision})
    if finished:
        say(f"\nThe run in {out} is finished. More --steps extend it; another --out begins a new one.")
        return 0
    runtime = replace(runtime, compiled=choose_compiled(options.compile, device, steps >= COMPILE_STEPS))
    chunk_bytes = options.chunk_mb and options.chunk_mb << 20
    settings = LossSettings(options.direction, options.temperature, weights, chunk_bytes, runtime.compiled)
    distiller = Distiller(student.train(), teacher, settings, runtime, extra).to(device)
    optimiser = make_optimiser(distiller, options.lr, options.weight_decay, keeps_gradients=runtime.uses_graphs)
    scaler = runtime.grad_scaler()
    state = run_state.resume(out, distiller, optimiser, scaler, runtime)
    if state.schedules[-1:] != (steps,):
        state.schedules += (steps,)
    world.reach(state.step)
    if world.size > 1:
        world.compare({"checkpoint": run_state.checkpoint_hash(out, state.step), "compiled": runtime.compiled})
    if world.is_main and not sample:
        run_folder.write_run(out, identity)
        run_folder.restore_best(out, state)
        run_folder.remove_partial_files(out)
    if world.is_main and stored and stored["options"].get("steps", steps) < steps:
        next_lr = learning_rate(state.step + 1, steps, options.lr, options.warmup)
        report.print_extension(stored["options"]["steps"], steps, next_lr)
    work = work._replace(first=state.step)
    prepare_models(student, teacher, runtime)
    engine = nn.parallel.DistributedDataParallel(distiller) if world.group else distiller
    first, stride = state.step * blocks_per_step + world.rank * options.batch_size, world.size * options.batch_size
    micro_batches = training_batches(blocks, masking, options.batch_size, options.seed, first, stride)
    if device.type == "cuda":
        micro_batches = prefetched(micro_batches)
    flops = training_flops(student.config, teacher and teacher.config, options.block_size, options.masking_rate)
    peak = peak_tokens_per_second(runtime, world.size, flops)
    about = {"options": asdict(found), "runtime": runtime.to_json(), "versions": versions()}
    about["schedules"] = list(state.schedules)
    about |= origins(found, ("teacher", "student"), blocks.manifest["sources"])

    def validate_now() -> dict[str, float]:
        begun = time.monotonic()
        figures = validate(student, teacher, validation, settings, runtime, world)
        state.validation_seconds = time.monotonic() - begun
        return figures

    if sample:

        def time_step() -> None:
            sums = backward(engine, teacher, list(islice(micro_batches, per_rank)), scaler, world)
            optimiser_step(distiller, optimiser, scaler, 0.0, options.clip)
            sums.sum().item()  # waits for a GPU

        measured = plan.measure(time_step, validate_now, runtime, world)
        plan.print_work(work, measured, student, teacher)
        disk = plan.Disk.of(out, distiller, options.keep)
        size, on_gpu = plan.memory_size(device), device.type == "cuda"
        plan.print_memory(measured.memory, disk.checkpoint, size, on_gpu, world.size)
        plan.print_files(out, disk, options.checkpoint_every, options.keep)
        return 0

    # ---- the loop
    writer, pending = run_state.CheckpointWriter(out, options.keep, tokenizer), PendingLosses(loss_weights)
    record, status, saved, first = {}, None, None, list(islice(micro_batches, 1))
    micro_batches = chain(first, micro_batches)

    def time_gradient() -> None:
        """Leaves no trace: the first micro-batch is there for the first step too."""
        backward(engine, teacher, first, scaler, world).sum().item()  # waits for a GPU
        optimiser.zero_grad()

    with log.MetricsLogger(out, steps, state, options.tensorboard, enabled=world.is_main) as logger, stop:
        if state.step < steps:
            logger.begin("the timing of a step" + ", which compiles" * runtime.compiled)
            step_seconds = plan.time_step(time_gradient, per_rank, runtime, world)
            logger.begin("the validation before the first step")
            before = {} if state.baseline else validate_now()
            report.print_cost(work, step_seconds, state.validation_seconds, out, distiller, options.keep)
            if before:
                state.baseline = {"teacher": before["teacher_accuracy"]} if teacher else {}
                state.baseline["student before"] = before["accuracy"]
                state.metrics_bytes = logger.log({"step": 0, "held_out": before})
            logger.start()
            status = stop.now(world) or None  # of a signal; at least one step is done in --max-hours
        clock = time.monotonic()
        while state.step < steps and status is None:
            step = state.step + 1
            lr = learning_rate(step, steps, options.lr, options.warmup)
            sums = backward(engine, teacher, list(islice(micro_batches, per_rank)), scaler, world, (options.seed, step))
            grad_norm, skipped = optimiser_step(distiller, optimiser, scaler, lr, options.clip)
            pending.add(sums, skipped)
            state.step = step
            world.reach(step)
            logger.complete(step)
            is_last = step == steps
            status = None if is_last else stop.now(world)
            validates = is_last or (options.eval_every and step % options.eval_every == 0)
            logs = validates or step % options.log_every == 0
            every = options.checkpoint_every
            saves = status is not None or (every and (is_last or step % every == 0))
            if logs or saves:
                pending.read_into(state, options.max_skipped, world)
                state.add_seconds(time.monotonic() - clock)
            if logs:
                record = log.metrics_record(state, grad_norm, lr, loss_weights, blocks_per_step, peak)
                if validates:
                    logger.begin(f"the validation after step {step}")
                    record["held_out"] = validate_now()
                    run_folder.keep_best(
                        out, student, tokenizer, state, record["held_out"], about if world.is_main else {}
                    )
                state.metrics_bytes = logger.log(
                    record, work._replace(first=step).seconds(state.seconds / step, state.validation_seconds)
                )
                state.new_line()
            if saves and world.is_main:
                values = {**about, "run": identity, **state.to_json()}
                saved = writer.save(step, student, *run_state.gather(distiller, optimiser, scaler, values), about)
            if logs or saves:
                clock = time.monotonic()
        writer.wait()
    if status is not None:
        if world.is_main:
            news = f"saved {saved}" if saved else "nothing new to save"
            print(f"Stopped after step {state.step:,}; {news}. The same command resumes.", file=sys.stderr)
        return status

    # ---- the end
    results = record["held_out"] if record else validate_now()  # if it was killed after the last step
    if world.is_main:
        figures = run_folder.figures(state, results)
        save_model(student, out / run_state.STUDENT, {**about, "step": steps, **figures}, tokenizer)
        on_demo_text = options.corpus == DEMO and not options.is_demo
        report.print_accuracy(figures["held_out_accuracy"], results, on_demo_text)
        draw_curves(out, steps, lambda step: learning_rate(step, steps, options.lr, options.warmup), options.dropout)
        models = {"teacher": teacher} if teacher else {}
        models["student"] = student
        report.print_sizes(models, encoder_speeds(models, validation[0], runtime))
        report.print_files(out, state, work.tokens)
        report.print_next(report.next_commands(out, options.teacher if teacher else None, options.is_demo))
    return 0


def main() -> int:
    with meet() as watch:
        options = parsed(watch, lambda: parse_options(Options, None, "python train.py [OPTIONS]", __doc__))
        return train(options, watch)


if __name__ == "__main__":
    run_command("train.py", main, ModelError, Diverged, on_memory=ON_MEMORY)
