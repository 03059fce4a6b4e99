"""How fast and how lean: the training step and its loss, each beside what it is compared with.

The rows of a comparison run in processes of their own, in turn, step by step, so that what else the machine does
falls on all of them alike. Weights are random: no number here depends on their values.
"""

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

import train
from data.blocks import Batch
from data.cli import check_bounds, option, parse_options
from data.masking import CHOSEN
from losses import CHUNK_BYTES, IGNORE_INDEX, LossSettings, distillation_loss, fused_distillation_loss
from model import MaskedLM
from model.checkpoints.native import PRECISIONS
from model.training.device import GPU_PEAKS, Runtime, choose_device, training_flops
from model.training.optim import make_optimiser, optimiser_step

from .harness import HUGE_PAGES, LOG, Job, append_to, configs, heading, measure, ratio, table

OSCAR_TOKENS = 31e9  # French OSCAR, read once
ESTIMATED_GPUS = ("TITAN RTX", "A100", "H100")
ASSUMED_SHARE = 0.4  # of that peak


@dataclass(frozen=True)
class Options:
    """What is measured."""

    precision: tuple[str, ...] = option(("fp32", "bf16"), "arithmetic of the matrix products", "what is measured",
                                        nargs="+", choices=tuple(PRECISIONS))  # fmt: skip
    batch_size: int = option(32, "blocks a step", least=1, most=10**5)
    block_size: int = option(128, "tokens a block", least=4, most=512)
    tokens: tuple[int, ...] = option((1024, 2048, 4096, 8192), "for the loss alone, that it is timed with", nargs="+",
                                     type=int, least=1, most=10**6)  # fmt: skip
    memory_tokens: tuple[int, ...] = option((2048, 8192, 32768), "for the loss alone, that its memory is measured "
                                            "with", nargs="+", type=int, least=1, most=10**6)  # fmt: skip
    repetitions: int = option(5, "of each, of which the median is shown", least=1, most=1000)
    chunk_mb: int = option(CHUNK_BYTES >> 20, "as in train.py, for the loss alone", least=1, most=10**6)
    small: bool = option(False, "tiny models: to see that it runs")
    only: tuple[str, ...] = option(("step", "loss", "memory"), "parts", nargs="+", choices=("step", "loss", "memory"))
    device: str = option("auto", "as in train.py", "the machine")
    threads: int = option(0, "of the CPU, 0 for PyTorch's choice", least=0, most=4096)
    compile: bool = option(True, "torch.compile in this project's rows")
    log: bool = option(False, f"append the tables to eval/{LOG.name}", "the result")

    def __post_init__(self):
        check_bounds(self)


# ---- what the rows run -----------------------------------------------------------------------------------------


def random_batch(options: Options, num_words: int) -> Batch:
    """Without padding, 15 % of the tokens masked."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(5, num_words, (options.batch_size, options.block_size), generator=generator)
    masked = torch.rand(input_ids.shape, generator=generator) < CHOSEN
    return Batch(input_ids, torch.where(masked, input_ids, IGNORE_INDEX), torch.ones_like(masked), has_padding=False)


def run_options(options: Options) -> train.Options:
    """As the peer trains: its temperature and direction, our weights; all else by default."""
    return train.Options(direction="teacher-student", temperature=2.0)


def our_step(options: Options, runtime: Runtime) -> Callable[[], None]:
    """train.py's own step."""
    student_config, teacher_config = configs(options.small)
    teacher = MaskedLM(teacher_config).to(runtime.device).eval().requires_grad_(False)
    student = MaskedLM(student_config).to(runtime.device).train()
    run = run_options(options)
    settings = LossSettings(run.direction, run.temperature, run.weights, compiled=runtime.compiled)
    distiller = train.Distiller(student, teacher, settings, runtime).to(runtime.device)
    optimiser = make_optimiser(distiller, run.lr, run.weight_decay)
    scaler = runtime.grad_scaler()
    train.prepare_models(student, teacher, runtime)
    batch = random_batch(options, student_config.vocab_size)

    def step() -> None:
        train.backward(distiller, teacher, [batch], scaler)
        optimiser_step(distiller, optimiser, scaler, run.lr, run.clip)

    return step


def their_step(options: Options, runtime: Runtime) -> Callable[[], None]:
    """The peer's."""
    from .distilbert_step import baseline_step

    step = baseline_step(*configs(options.small), run_options(options), runtime)
    batch = random_batch(options, configs(options.small)[0].vocab_size)
    return lambda: step(batch)


def loss_alone(options: Options, runtime: Runtime, form: str, num_tokens: int) -> Callable[[], None]:
    """Forward and backward of the loss from random states, in the fused or the plain form."""
    config, device = configs(options.small)[0], runtime.device
    shape = config.vocab_size, config.hidden_size
    decoder = (torch.randn(shape, device=device) * 0.02).requires_grad_()
    teacher_decoder = (torch.randn(shape, device=device) * 0.02).to(PRECISIONS[runtime.precision])
    bias = torch.zeros(config.vocab_size, device=device, requires_grad=True)

    def states(num_tokens: int) -> list[torch.Tensor]:
        draw = [torch.randn(num_tokens, config.hidden_size, device=device, requires_grad=i < 2) for i in range(4)]
        words = torch.randint(5, config.vocab_size, (num_tokens,))
        return [*draw, torch.where(torch.rand(num_tokens) < CHOSEN, words, IGNORE_INDEX), torch.ones(num_tokens).bool()]

    def run(student_state, student_hidden, teacher_state, teacher_hidden, labels, real) -> None:
        with runtime.autocast():
            if form == "fused":
                total, _ = fused_distillation_loss(
                    student_state, decoder, bias, teacher_state, teacher_decoder, bias.detach(), labels, real,
                    student_hidden, teacher_hidden, compiled=runtime.compiled, chunk_bytes=options.chunk_mb << 20,
                )  # fmt: skip
            else:
                teacher_logits = F.linear(teacher_state, teacher_decoder, bias.detach())
                student_logits = F.linear(student_state, decoder, bias)
                total = distillation_loss(
                    student_logits, teacher_logits, student_hidden, teacher_hidden, labels.to(device), real.to(device)
                ).total()
        total.backward()
        for tensor in (decoder, bias, student_state, student_hidden):
            tensor.grad = None

    run(*states(64))  # so that libraries and compilers are loaded before memory is looked at
    return functools.partial(run, *states(num_tokens))


def product(options: Options, runtime: Runtime, rows: int, inner: int, columns: int) -> Callable[[], None]:
    """One large product of matrices: the ceiling."""
    dtype = PRECISIONS[runtime.precision]
    left, right = (torch.randn(shape, device=runtime.device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    result = torch.empty(rows, columns, dtype=dtype, device=runtime.device)
    return lambda: torch.mm(left, right, out=result)


# ---- tables ----------------------------------------------------------------------------------------------------


def measure_step(precision: str, options: Options) -> str:
    """Tokens a second and peak memory of the step, beside the peer's."""
    shapes = [(2048, 2048, 2048), (4096, 768, 3072), (768, 4096, 3072)]
    if options.small:
        shapes = [(64, 64, 64)]
    products = [Job(f"product {shape}", product, precision, shape) for shape in shapes]
    peer = Job("the peer's step", their_step, precision)
    on_cpu = choose_device(options.device).type == "cpu"
    also = [replace(peer, name="the peer's, in huge pages", environment=HUGE_PAGES)] if on_cpu else []
    ours = Job("this project's step", our_step, precision, (), HUGE_PAGES, options.compile)
    rows = measure([peer, *also, ours, *products], options)
    named = {row.name: row for row in rows}
    ceiling = max(
        2 * shape[0] * shape[1] * shape[2] / statistics.median(named[job.name].seconds)
        for shape, job in zip(shapes, products, strict=True)
    )
    tokens, per_token = options.batch_size * options.block_size, training_flops(*configs(options.small), options.block_size, CHOSEN)
    lines = [[f"step, {precision}, {options.batch_size} × {options.block_size}", "tokens/s", "speed", "peak memory",
              "of the peer's", "of the ceiling", "first step"]]  # fmt: skip
    for row in rows[: len(rows) - len(products)]:
        speed, other = tokens / statistics.median(row.seconds), named.get(peer.name)
        faster, leaner = (f"{ratio(other, row):.2f} ×", f"{row.peak / other.peak:.2f} ×") if other else ("", "")
        share = speed * per_token / ceiling
        lines.append([
            row.name, f"{speed:,.0f}", faster, f"{row.peak / 1e9:.2f} GB", leaner, f"{share:.0%}", f"{row.first:.0f} s"
        ])  # fmt: skip
    speed = tokens / statistics.median(named[ours.name].seconds)
    return (
        f"{table(*lines)}\n\nA token takes {per_token / 1e6:,.0f} million operations; the ceiling, the fastest of "
        f"{len(shapes)} large products, is {ceiling / 1e9:,.0f} billion a second.\n"
        f"ESTIMATE, from arithmetic alone: OSCAR's {OSCAR_TOKENS / 1e9:.0f} billion tokens, once, would take "
        + ", ".join(
            f"{OSCAR_TOKENS * per_token / (GPU_PEAKS[name][1] * ASSUMED_SHARE) / 3600:,.0f} h on one {name}"
            for name in ESTIMATED_GPUS
        )
        + f" at an assumed {ASSUMED_SHARE:.0%} of its peak, and {OSCAR_TOKENS / speed / 86400:,.0f} days here. "
        "The paper's own figure: 18 days on one Titan RTX."
    )


def measure_loss(precision: str, options: Options) -> str:
    """The loss alone, forward and backward, against the plain form, by number of tokens."""
    lines = [[f"loss alone, {precision}, tokens", "plain", "fused", "faster"]]
    for num_tokens in options.tokens:
        plain, fused = measure(
            [
                Job(form, loss_alone, precision, (form, num_tokens), HUGE_PAGES, options.compile)
                for form in ("plain", "fused")
            ],
            options,
        )
        micro = [f"{statistics.median(row.seconds) / num_tokens * 1e6:,.0f} µs/token" for row in (plain, fused)]
        lines.append([f"{num_tokens:,}", *micro, f"{ratio(plain, fused):.2f} ×"])
    return table(*lines)


def measure_memory(precision: str, options: Options) -> str:
    """What the fused loss takes above its inputs, gradients included, by number of tokens."""
    lines = [[f"fused loss, {precision}, tokens", "extra memory", "the logits alone would be"]]
    words = configs(options.small)[0].vocab_size
    for num_tokens in options.memory_tokens:
        job = Job("fused", loss_alone, precision, ("fused", num_tokens), HUGE_PAGES, options.compile)
        (row,) = measure([job], replace(options, repetitions=1))
        logits = 2 * num_tokens * words * PRECISIONS[precision].itemsize
        lines.append([f"{num_tokens:,}", f"{row.extra / 1e9:.2f} GB", f"{logits / 1e9:.2f} GB"])
    return table(*lines)


PARTS = {"step": measure_step, "loss": measure_loss, "memory": measure_memory}


def main(arguments: list[str] | None = None) -> None:
    """The command.  Raises OptionError."""
    options = parse_options(Options, arguments, "python -m eval throughput [OPTIONS]", __doc__)
    report = heading("throughput", options, arguments)
    print("\n\n".join(report), flush=True)
    for precision in options.precision:
        for part in options.only:
            report.append(PARTS[part](precision, options))
            print("\n" + report[-1], flush=True)
    if options.log:
        append_to(LOG, report)
