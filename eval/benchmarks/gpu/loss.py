"""Part of the GPU benchmark: the loss alone, in its forms, and Liger-Kernel's fused losses if it is installed."""

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from losses import IGNORE_INDEX
from losses.fused import Decoder
from model.training.device import Runtime

from .. import throughput
from ..harness import HUGE_PAGES, Failure, Job, Row, Run, configs, free_memory, rounds, started, table
from .results import COMPILE_THREADS, MAKE_SECONDS, Options, Results, gigabytes, median, records, repeat

LOSS_TOKENS = (2048, 8192, 16384, 32768, 65536)
CHUNK_MB = (128, 256, 512, 1024)
LOSS_RUNS = 5  # per measurement


def liger_cross_entropy(
    student: Decoder, teacher: Decoder, hidden: Sequence[Tensor], labels: Tensor, real: Tensor
) -> Tensor:
    """Masked LM alone, over all tokens, by Liger-Kernel.  Raises ImportError without it."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    state, weight, bias = (tensor.to(teacher.weight.dtype) for tensor in student)
    loss = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORE_INDEX, accum_dtype=torch.float32)
    return loss(weight, state, labels.to(state.device), bias)


def liger_jsd(student: Decoder, teacher: Decoder, hidden: Sequence[Tensor], labels: Tensor, real: Tensor) -> Tensor:
    """The divergence alone, teacher → student, by Liger-Kernel.  Raises ImportError without it."""
    from liger_kernel.transformers import LigerFusedLinearJSD

    state, weight, teacher_state = (x.to(teacher.weight.dtype) for x in (student.state, student.weight, teacher.state))
    loss = LigerFusedLinearJSD(jsd_beta=0.0, accum_dtype=torch.float32)
    return loss(state, weight, teacher_state, teacher.weight, None)


def loss(options: Options, results: Results) -> None:
    """Forward and backward pass of the loss alone: time, and memory above its inputs."""
    fused, chunks = throughput.fused_loss, CHUNK_MB[:1] if options.small else CHUNK_MB
    forms = [  # name, function, whether it is compiled, chunk size in MiB
        ("plain", throughput.plain_loss, False, 1),
        (f"fused, {CHUNK_MB[0]} MiB", fused, False, CHUNK_MB[0]),
        *((f"fused, compiled, {size} MiB", fused, not options.small, size) for size in chunks),
        ("Liger-Kernel, cross-entropy alone", liger_cross_entropy, False, 1),
        ("Liger-Kernel, JSD alone", liger_jsd, False, 1),
    ]
    jobs = [
        Job(name, loss_row, "bf16", (function, size), (*HUGE_PAGES, *COMPILE_THREADS), compiled)
        for name, function, compiled, size in forms
    ]
    sizes, lines, extra = (64, 256) if options.small else LOSS_TOKENS, [[job.name] for job in jobs], {}
    vocab_size = configs(options.small)[0].vocab_size
    with started(jobs, options) as workers:
        longest = 0.0
        for tokens in sizes:
            if not results.has_time_for(f"N = {tokens:,}", longest):
                break
            start = time.monotonic()
            # in parallel for the smallest size only, where the forms compile: later ones need the GPU's memory
            found = rounds(workers, options, (tokens,), together=tokens == sizes[0], seconds=MAKE_SECONDS)
            for line, row in zip(lines, found):
                line.append(cell(row))
                if isinstance(row, Row):
                    extra.setdefault(row.name, []).append((tokens, row.extra))
            header = ["loss alone, bf16", *(f"N = {size:,}" for size in sizes[: len(lines[0]) - 1])]
            about = "Time of the forward and backward pass; memory above the inputs, gradients included. "
            about += f"Logits of both models in bf16 at N = {tokens:,}: {gigabytes(4 * tokens * vocab_size)}."
            growth = [growth_line(name, points) for name, points in extra.items() if len(points) > 1]
            text = "\n\n".join([table(header, *lines), about, "\n".join(growth)]).strip()
            results.write("loss", text, tokens=tokens, rows=records({row.name: row for row in found}))
            if tokens != sizes[0]:  # where the forms compile
                longest = 2 * (time.monotonic() - start)  # the next size has twice as many tokens


def loss_row(options: Options, runtime: Runtime, function: Callable[..., Tensor], chunk_mb: int, tokens: int) -> Run:
    """Several passes per run, after two that compile and warm up."""
    settings = throughput.Options(chunk_mb=chunk_mb, small=options.small, device=options.device)
    run = throughput.loss_alone(settings, runtime, function, tokens)
    repeat(run, 2)
    free_memory(runtime.device)
    return partial(repeat, run, LOSS_RUNS)


def cell(row: Row | Failure) -> str:
    if isinstance(row, Failure):
        return f"not measured: {row.reason}"
    return f"{median(row) / LOSS_RUNS * 1e3:,.2f} ms, {gigabytes(row.extra)}"


def growth_line(name: str, points: list[tuple[int, int]]) -> str:
    """points: tokens and extra memory; the smallest size, which may fit into one chunk, counts only if it must."""
    (first, before), (last, after) = points[min(1, len(points) - 2)], points[-1]
    return f"- {name}: {after / max(before, 1):.2f} × as much memory at N = {last:,} as at N = {first:,}"
