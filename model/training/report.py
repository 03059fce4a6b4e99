"""What a person reads before the first step of a run, and at its end."""

import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from data.cli import count, say, warn

from ..config import EncoderConfig
from . import plan
from .curves import CURVES
from .device import Runtime
from .plan import Work
from .run_state import BEST, FOLDER, METRICS, RUN, STUDENT
from .screen import duration
from .state import TrainState

DEMO_QUESTION = "Elle joue de la <mask>."
QUESTION = "Le camembert est <mask> :)"
MANY_EPOCHS = 10  # more are a warning
LOSS_NAMES = ("soft label", "cosine", "masked LM", "hidden states", "attention relations")  # of equation (13), others
DAY, YEAR = 86400, 365 * 86400  # seconds
PURPOSES = {
    STUDENT: "the student at the end, with its tokenizer inside",
    BEST: "the student of step {best_step:,}, the lowest held-out loss",
    METRICS: "losses, learning rate and speed of the logged steps, held-out figures",
    CURVES: "the same as a picture",
    "tensorboard": "the same for TensorBoard",
    RUN: "the options, and hashes of the inputs: what this run is",
    FOLDER: "from which more --steps would extend the run; else not needed",
}

# ---- before the first step -------------------------------------------------------------------------------------


def print_models(teacher_name: str, teacher: EncoderConfig | None, student: EncoderConfig, start: str) -> None:
    if teacher is not None:
        say(f"teacher   {teacher_name}: {describe(teacher)}")
    say(f"student   {describe(student)}, from {start}")


def describe(config: EncoderConfig) -> str:
    sizes = f"{config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} heads"
    return f"{sizes}, {config.vocab_size:,} tokens in the vocabulary"


def print_loss(weights: Sequence[float] | None, direction: str, temperature: float) -> None:
    """weights: of equation (13), and of the terms beyond the paper; None without a teacher."""
    if weights is None:
        say("loss      masked LM")
        return
    named = [f"{weight:g} {name}" for weight, name in zip(weights, LOSS_NAMES) if weight or name in LOSS_NAMES[:3]]
    terms = " + ".join(named)
    divergence = "D_KL({} || {})".format(*direction.split("-"))
    say(f"loss      {terms}, {divergence}, temperature {temperature:g}")


def print_corpus(paths: Sequence[str] | None, folder: Path | None, held_out: int) -> None:
    """paths: as given with --corpus, None for the demo's text; folder: of the tokens, None if they are only a sample.

    held_out: number of blocks.
    """
    names = (
        "the demo's text" if paths is None else ", ".join(paths[:3]) + f" and {len(paths) - 3} more" * (len(paths) > 3)
    )
    prepared = "" if names == str(folder) else f", prepared in {folder}"
    say(f"corpus    {names}" + (f"{prepared}, {count(held_out, 'block')} held out" if folder else ""))
    if paths is None:
        say("note      the corpus is a demo: sentences about a small invented world. Use --corpus for real text.")


def print_run(work: Work, lr: float, blocks: float | None, estimate: str, runtime: Runtime, ranks: int) -> None:
    """lr: the highest; blocks: of the corpus, for training, None if unknown

    estimate: from what, or what is known instead; or "". Warns if the run repeats the corpus often.
    """
    if runtime.device.type == "cuda":
        name = torch.cuda.get_device_name(runtime.device)
    else:
        name = count(torch.get_num_threads(), "thread")
    where = f"{runtime.device}, {runtime.precision}, torch {torch.__version__}, {name}"
    say(f"run       {count(work.last, 'step')} on {where}" + (f", {ranks} ranks" if ranks > 1 else ""))
    say(f"lr        {lr:.2g} after the warm-up")
    tokens = f"{work.tokens:,} a step, {work.last * work.tokens:,} in all"
    if blocks is None:
        say(f"tokens    {tokens}; epochs are unknown until the corpus is fetched and prepared: {estimate}")
        return
    epochs = work.last * work.blocks / blocks
    say(
        f"tokens    {tokens}: {epochs:.3g} epochs of {blocks:,.0f} blocks of {work.block_size}"
        + (estimate and f", {estimate}")
    )
    if epochs > MANY_EPOCHS:
        advice = "Add text or choose fewer --steps, unless that is meant."
        warn(f"the corpus is repeated {epochs:,.0f} times; the student may learn it by heart. {advice}")


def print_extension(before: int, steps: int, lr: float) -> None:
    """A run that resumes with more steps than it had. lr: the learning rate of its next step."""
    schedule = f"the learning rate is {lr:.1e} now and decays linearly to 0 at step {steps:,}, no longer {before:,}"
    say(f"extended  from {before:,} to {steps:,} steps: {schedule}")


def print_cost(work: Work, step: float, validation: float, out: Path, distiller: nn.Module, keep: int) -> None:
    """step, validation: their seconds as timed just now.  Warns if the disk is too full."""
    seconds = work.seconds(step, validation)
    end = ""
    if seconds < 10 * YEAR:  # what is longer is a mistake, and may have no date
        format = "%H:%M" if seconds < DAY / 2 else "%d %B %H:%M" if seconds < YEAR / 2 else "%d %B %Y"
        end = f", until {time.strftime(format, time.localtime(time.time() + seconds))}"
    checks = count(work.validations(), "validation")
    say(f"time      about {plan.time_text(seconds)}{end}: {step:.3g} s a step, {checks}")
    disk = plan.Disk.of(out, distiller, keep)
    say(f"disk      at most {plan.gigabytes(disk.needed)} in {out}; {plan.gigabytes(disk.free)} are free")
    if disk.needed >= disk.free:
        warn(f"{out} has too little room for this run. Free some space, or choose another --out.")


# ---- the end ---------------------------------------------------------------------------------------------------


def print_accuracy(accuracy: Mapping[str, float], held_out: Mapping[str, float], on_demo_text: bool) -> None:
    """accuracy: masked-token accuracy of each model; held_out: the student's last validation.

    on_demo_text: whether a teacher that is not the demo's was distilled on the demo's text.
    """
    say("")
    if on_demo_text:
        say("Trained on the demo's invented text, not on French: name a corpus with --corpus.")
    say("Masked-token accuracy on held-out text:")
    for name, value in accuracy.items():
        say(f"  {name + ' training' * name.startswith('student'):30} {value:6.1%}")
    if "agreement" in held_out:
        say(f"  {'agreement with the teacher':30} {held_out['agreement']:6.1%}")
    say(f"Pseudo-perplexity of the student: {held_out['pseudo_perplexity']:.2f}")


def print_sizes(models: Mapping[str, nn.Module], speeds: Mapping[str, float]) -> None:
    """Parameters, weights in fp32 and speed of teacher, if there is one, and student."""
    parameters = {name: sum(each.numel() for each in model.parameters()) for name, model in models.items()}
    rows = {
        "parameters": ({name: f"{each:,}" for name, each in parameters.items()}, parameters),
        "weights in fp32": ({name: plan.gigabytes(4 * each) for name, each in parameters.items()}, parameters),
        "encoder, tokens/s": ({name: f"{each:,.0f}" for name, each in speeds.items()}, speeds),
    }
    say("")
    say("Size and speed".ljust(20) + "".join(f"{name:>16}" for name in models))
    for title, (cells, values) in rows.items():
        ratio = f"   × {values['student'] / values['teacher']:.2f}" if "teacher" in values else ""
        say(f"  {title:18}" + "".join(f"{cells[name]:>16}" for name in models) + ratio)


def print_files(out: Path, state: TrainState, tokens: int) -> None:
    """How long it took, and every file of the run with its size. tokens: per step."""
    say(f"\n{state.step:,} steps, {state.step * tokens:,} tokens, in {duration(state.seconds)}. Written to {out}:")
    for name, purpose in PURPOSES.items():
        if (path := out / name).exists():
            files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
            label = f"{name}/" if path.is_dir() else name
            size = plan.gigabytes(sum(each.stat().st_size for each in files))
            say(f"  {label:22}{size:>9}  {purpose.format(best_step=state.best_step)}")


def next_commands(out: Path, teacher: str | None, is_demo: bool) -> dict[str, list[str]]:
    """Purpose -> words of the commands that come next. teacher: path or name, None without one."""
    student = str(out / STUDENT)
    question = DEMO_QUESTION if is_demo else QUESTION
    commands = {"Ask it:": ["python", "-m", "eval", "fill-mask", question, "--model", student]}
    if is_demo:
        real = ["--teacher", "almanach/camembert-base", "--corpus", "texts/", "--steps", "100000", "--accumulate", "16"]
        commands["Table 2 of the paper, on the demo:"] = ["python", "-m", "eval", "table2"]
        commands["That was the demo. Distil CamemBERT with your own text:"] = [
            "python",
            "train.py",
            *real,
            "--out",
            "runs/distilcamembert",
        ]
        return commands
    tasks, table = ["--data", "tasks/"], str(out / "table2")
    if teacher is not None:
        words = ["python", "-m", "eval", "table2", "--teacher", teacher, "--student", student, *tasks, "--out", table]
        commands["Compare it with its teacher on your tasks:"] = words
    else:
        files = ["--train", "train.tsv", "--dev", "dev.tsv", "--out", str(out / "sentiment")]
        commands["Fine-tune it:"] = ["python", "-m", "eval", "finetune", "sentiment", "--model", student, *files]
    hf = ["python", "convert_weights.py", student, str(out / "huggingface"), "--to", "hf"]
    commands["Open it with transformers:"] = hf
    return commands


def print_next(commands: Mapping[str, Iterable[str]]) -> None:
    for purpose, words in commands.items():
        say(f"\n{purpose}\n  {shlex.join(words)}")
