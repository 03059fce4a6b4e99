"""Benchmark of training: tokens per second and memory of the distillation step, and of its loss alone.

The step is compared with the one of Hugging Face's DistilBERT distillation script and with large matrix products; the
fused loss with its plain form. Rows run in alternation, each in its own process, so that other load on the machine
affects all alike. The weights are random: no result depends on their values.
"""

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

import train
from data.blocks import Batch
from data.cli import check_bounds, option, parse_options, say
from data.masking import CHOSEN
from losses import IGNORE_INDEX, LossSettings, distillation_loss, fused_distillation_loss
from losses.fused import Decoder
from model import MaskedLM
from model.inference import PRECISIONS
from model.training.device import (
    DEVICE_HELP,
    GPU_PEAKS,
    Runtime,
    choose_device,
    prepare_models,
    set_up_process,
    training_flops,
)
from model.training.optim import make_optimiser, optimiser_step
from model.training.options import Options as TrainOptions

from .distilbert_step import baseline_step
from .harness import HUGE_PAGES, LOG, Job, Run, append_to_log, configs, heading, measure, ratio, table

OSCAR_TOKENS = 31e9  # one epoch of French OSCAR
GPUS = ("TITAN RTX", "A100", "H100")
ASSUMED_UTILISATION = 0.4  # of the GPU's peak
PARTS = ("step", "loss", "memory")
COUNTS = dict(nargs="+", type=int, least=1, most=10**6)

PARTS_HELP = f"parts of the benchmark to run (default: {', '.join(PARTS)})"


@dataclass(frozen=True)
class Options:
    """Every option with its default."""

    precision: tuple[str, ...] = option(
        ("fp32", "bf16"), "of matrix products", "benchmark", nargs="+", choices=PRECISIONS
    )
    batch_size: int = option(32, "blocks per step", least=1, most=10**5)
    block_size: int = option(128, "tokens per block", least=4, most=512)
    tokens: tuple[int, ...] = option((1024, 2048, 4096, 8192), "token counts for the speed of the loss", **COUNTS)
    memory_tokens: tuple[int, ...] = option((2048, 8192, 32768), "token counts for the memory of the loss", **COUNTS)
    repetitions: int = option(5, "rounds, of which the median is reported", least=1, most=1000)
    chunk_mb: int | None = option(
        None, "memory for the loss's logits, in MiB (default: train.py's)", type=int, least=1, most=10**6
    )
    small: bool = option(False, "use tiny models, for a quick test of the command")
    only: tuple[str, ...] = option(PARTS, PARTS_HELP, nargs="+", choices=PARTS, metavar="PART")

    device: str = option("auto", DEVICE_HELP, "device")
    threads: int = option(0, "CPU threads, 0: PyTorch's default", least=0, most=4096)
    compile: bool = option(True, "use torch.compile in the rows of this project")

    log: bool = option(False, f"append the tables to eval/{LOG.name}", "output")

    def __post_init__(self):
        check_bounds(self)


# ---- jobs ------------------------------------------------------------------------------------------------------


def random_batch(options: Options, vocab_size: int) -> Batch:
    """A batch without padding, 15 % of its tokens masked."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, vocab_size, (options.batch_size, options.block_size), generator=generator)
    masked = torch.rand(input_ids.shape, generator=generator) < CHOSEN
    return Batch(input_ids, torch.where(masked, input_ids, IGNORE_INDEX), torch.ones_like(masked), has_padding=False)


def training_options(hidden_size: int) -> TrainOptions:
    """The loss settings of the DistilBERT script, with the paper's weights; all else by default."""
    options = TrainOptions(direction="teacher-student", temperature=2.0)
    return options.complete(hidden_size, has_teacher=True, blocks=None)


def project_step(options: Options, runtime: Runtime) -> Run:
    """A step of train.py."""
    set_up_process(runtime.device)
    student_config, teacher_config = configs(options.small)
    teacher = MaskedLM(teacher_config).to(runtime.device).eval().requires_grad_(False)
    student, run = MaskedLM(student_config).to(runtime.device).train(), training_options(student_config.hidden_size)
    chunk_bytes = options.chunk_mb and options.chunk_mb << 20
    settings = LossSettings(run.direction, run.temperature, run.weights, chunk_bytes, runtime.compiled)
    distiller = train.Distiller(student, teacher, settings, runtime).to(runtime.device)
    optimiser = make_optimiser(distiller, run.lr, run.weight_decay, keeps_gradients=runtime.uses_graphs)
    scaler = runtime.grad_scaler()
    prepare_models(student, teacher, runtime)
    batch = random_batch(options, student_config.vocab_size)

    def step() -> None:
        train.backward(distiller, teacher, [batch], scaler)
        optimiser_step(distiller, optimiser, scaler, run.lr, run.clip)

    return step


def distilbert_baseline(options: Options, runtime: Runtime) -> Run:
    """A step of the DistilBERT script."""
    student, teacher = configs(options.small)
    step = baseline_step(student, teacher, training_options(student.hidden_size), runtime)
    return functools.partial(step, random_batch(options, student.vocab_size))


def plain_loss(student: Decoder, teacher: Decoder, hidden: Sequence[Tensor], labels: Tensor, real: Tensor) -> Tensor:
    student_logits, teacher_logits = F.linear(*student), F.linear(*teacher)
    labels, real = labels.to(student_logits.device), real.to(student_logits.device)
    return distillation_loss(student_logits, teacher_logits, *hidden, labels, real).total()


def fused_loss(
    student: Decoder, teacher: Decoder, hidden: Sequence[Tensor], labels: Tensor, real: Tensor, **settings
) -> Tensor:
    return fused_distillation_loss(*student, *teacher, labels, real, *hidden, **settings)[0]


def loss_alone(options: Options, runtime: Runtime, loss: Callable[..., Tensor], num_tokens: int) -> Run:
    """Forward and backward pass of the loss from random hidden states; loss: as `plain_loss`."""
    config, device = configs(options.small)[0], runtime.device
    shape = config.vocab_size, config.hidden_size
    decoder, teacher_decoder = (torch.randn(shape, device=device) * 0.02 for _ in range(2))
    decoder, teacher_decoder = decoder.requires_grad_(), teacher_decoder.to(PRECISIONS[runtime.precision])
    bias = torch.zeros(config.vocab_size, device=device, requires_grad=True)
    if loss is fused_loss:
        loss = functools.partial(
            loss, compiled=runtime.compiled, chunk_bytes=options.chunk_mb and options.chunk_mb << 20
        )

    def states(num_tokens: int) -> list[Tensor]:
        draw = [torch.randn(num_tokens, config.hidden_size, device=device, requires_grad=i < 2) for i in range(4)]
        ids = torch.randint(5, config.vocab_size, (num_tokens,))
        return [*draw, torch.where(torch.rand(num_tokens) < CHOSEN, ids, IGNORE_INDEX), torch.ones(num_tokens).bool()]

    def run(student_state, student_hidden, teacher_state, teacher_hidden, labels, real) -> None:
        student, teacher = Decoder(student_state, decoder, bias), Decoder(teacher_state, teacher_decoder, bias.detach())
        with runtime.autocast():
            total = loss(student, teacher, (student_hidden, teacher_hidden), labels, real)
        total.backward()
        for tensor in (decoder, bias, student_state, student_hidden):
            tensor.grad = None

    run(*states(64))  # loads libraries and compiles before memory is measured
    return functools.partial(run, *states(num_tokens))


def matrix_product(options: Options, runtime: Runtime, rows: int, inner: int, columns: int) -> Run:
    """A large matrix product."""
    dtype = PRECISIONS[runtime.precision]
    left, right = (torch.randn(shape, device=runtime.device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    result = torch.empty(rows, columns, dtype=dtype, device=runtime.device)
    return lambda: torch.mm(left, right, out=result)


# ---- tables ----------------------------------------------------------------------------------------------------


def measure_step(precision: str, options: Options) -> str:
    """A table of the step of this project, of the DistilBERT script's, and their share of the fastest product."""
    shapes = [(64, 64, 64)] if options.small else [(2048, 2048, 2048), (4096, 768, 3072), (768, 4096, 3072)]
    products = [Job(f"product {shape}", matrix_product, precision, shape) for shape in shapes]
    jobs = [Job("DistilBERT script", distilbert_baseline, precision)]
    if choose_device(options.device).type == "cpu":
        jobs.append(replace(jobs[0], name="DistilBERT script, huge pages", environment=HUGE_PAGES))
    jobs.append(Job("this project", project_step, precision, (), HUGE_PAGES, options.compile))
    rows = {row.name: row for row in measure([*jobs, *products], options)}
    times = [statistics.median(rows[job.name].seconds) for job in products]
    fastest = max(2 * math.prod(shape) / time for shape, time in zip(shapes, times, strict=True))
    tokens = options.batch_size * options.block_size
    flops_per_token = training_flops(*configs(options.small), options.block_size, CHOSEN)
    title = f"step, {precision}, {options.batch_size} × {options.block_size}"
    lines = [[title, "tok/s", "speed-up", "peak memory", "of the script's", "of the fastest product", "first step"]]
    baseline = rows.get(jobs[0].name)
    for row in (rows[job.name] for job in jobs if job.name in rows):
        speed = tokens / statistics.median(row.seconds)
        compared = (f"{ratio(baseline, row):.2f} ×", f"{row.peak / baseline.peak:.2f} ×") if baseline else ("", "")
        memory, share = f"{row.peak / 1e9:.2f} GB", f"{speed * flops_per_token / fastest:.0%}"
        lines.append([row.name, f"{speed:,.0f}", compared[0], memory, compared[1], share, f"{row.first:.0f} s"])
    days = OSCAR_TOKENS / speed / 86400  # of this project, the last row
    seconds = {name: OSCAR_TOKENS * flops_per_token / (GPU_PEAKS[name][1] * ASSUMED_UTILISATION) for name in GPUS}
    hours = ", ".join(f"{time / 3600:,.0f} h on one {name}" for name, time in seconds.items())
    return (
        f"{table(*lines)}\n\nA token takes {flops_per_token / 1e6:,.0f} MFLOP; the fastest of {len(shapes)} matrix "
        f"products runs at {fastest / 1e9:,.0f} GFLOP/s.\n"
        f"Estimate from these numbers alone: one epoch of OSCAR, {OSCAR_TOKENS / 1e9:.0f} billion tokens, takes "
        f"{hours} at an assumed {ASSUMED_UTILISATION:.0%} of the GPU's peak, and {days:,.0f} days on this machine. "
        "DistilCamemBERT's model card says 18 days on one Titan RTX."
    )


def measure_loss(precision: str, options: Options) -> str:
    """A table of the time of the loss alone, forward and backward, in its plain and fused form."""
    lines = [[f"loss alone, {precision}, tokens", "plain", "fused", "speed-up"]]
    for num_tokens in options.tokens:
        forms = {"plain": plain_loss, "fused": fused_loss}.items()
        jobs = [Job(name, loss_alone, precision, (f, num_tokens), HUGE_PAGES, options.compile) for name, f in forms]
        plain, fused = measure(jobs, options)
        times = [f"{statistics.median(row.seconds) / num_tokens * 1e6:,.0f} µs/token" for row in (plain, fused)]
        lines.append([f"{num_tokens:,}", *times, f"{ratio(plain, fused):.2f} ×"])
    return table(*lines)


def measure_memory(precision: str, options: Options) -> str:
    """A table of the peak memory of the fused loss above its inputs, gradients included."""
    lines = [[f"fused loss, {precision}, tokens", "extra memory", "logits of both models"]]
    vocab_size = configs(options.small)[0].vocab_size
    for num_tokens in options.memory_tokens:
        job = Job("fused", loss_alone, precision, (fused_loss, num_tokens), HUGE_PAGES, options.compile)
        (row,) = measure([job], replace(options, repetitions=1))
        logits = 2 * num_tokens * vocab_size * PRECISIONS[precision].itemsize
        lines.append([f"{num_tokens:,}", f"{row.extra / 1e9:.2f} GB", f"{logits / 1e9:.2f} GB"])
    return table(*lines)


def main(arguments: list[str] | None = None) -> None:
    """The command.  Raises OptionError."""
    options = parse_options(Options, arguments, "python -m eval throughput [OPTIONS]", __doc__)
    report = heading("throughput", options, arguments)
    say("\n\n".join(report))
    measurements = {"step": measure_step, "loss": measure_loss, "memory": measure_memory}
    for precision, part in itertools.product(options.precision, options.only):
        report.append(measurements[part](precision, options))
        say("\n" + report[-1])
    if options.log:
        append_to_log(LOG, report)
