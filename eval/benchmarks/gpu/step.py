"""Parts of the GPU benchmark: the distillation step, compared with transformers, and a profile of it."""

import functools
import time
from collections.abc import Callable

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from data.masking import CHOSEN
from model.training.device import Runtime, choose_device, training_flops

from .. import throughput
from ..harness import (
    HUGE_PAGES,
    Failure,
    Job,
    Row,
    Run,
    configs,
    free_memory,
    ratio,
    reset_peak,
    rounds,
    started,
    synchronise,
    table,
)
from .checks import measured_peaks
from .results import (
    COMPILE_THREADS,
    MAKE_SECONDS,
    Options,
    Results,
    gigabytes,
    median,
    not_measured,
    records,
    repeat,
    target,
)

STEP_TOKENS = 81_920  # per measurement: 10 steps of 8,192 tokens

# ---- the step --------------------------------------------------------------------------------------------------

PROJECT, COMPILED = "this project", "this project, compiled"  # on a GPU, compiled layers run as CUDA graphs
BASELINE, BASELINE_COMPILED = "transformers", "transformers, compiled"
COMPARED = {  # row -> what makes its step, whether it is compiled
    PROJECT: (throughput.project_step, False),
    COMPILED: (throughput.project_step, True),
    BASELINE: (throughput.distilbert_baseline, False),
    BASELINE_COMPILED: (throughput.distilbert_baseline, True),
}
Size = tuple[int, int]  # blocks per step, tokens per block
SIZES = (64, 128), (16, 512)
SMALL_SIZES = (2, 16), (1, 32)


def step(options: Options, results: Results) -> None:
    """The whole distillation step, compared with transformers, and with other batch sizes.

    What is measured together compiles in parallel; the most important rows come first, and what would take longer than
    the time that is left, judged by what came before, is left out.
    """
    peaks = results.find("peaks") or measured_peaks(options, results)
    short, long = SMALL_SIZES if options.small else SIZES
    sweeps = {short: (16, 32, 128, 256), long: (4, 8, 32, 64)}  # besides the batch that is compared
    if options.small:
        sweeps = {short: (1, 4), long: ()}
    measured: dict[tuple, Row | Failure] = {}

    def compare(precision: str, size: Size) -> list:
        return [(precision, size, name) for name in COMPARED]

    def sweep(size: Size) -> list:
        return [("bf16", (blocks, size[1]), COMPILED) for blocks in sweeps[size]]

    groups = {
        "bf16, short blocks": compare("bf16", short),
        "bf16, long blocks": compare("bf16", long),
        "fp16, short blocks": compare("fp16", short),
        "sweep of batch sizes, short blocks": sweep(short),
        "sweep of batch sizes, long blocks": sweep(long),
        "fp16, long blocks": compare("fp16", long),
    }
    if options.small:
        groups = {"bf16": compare("bf16", short), "fp16, sweep": compare("fp16", long) + sweep(short)}
    longest = 0.0
    for about, group in groups.items():
        if not results.has_time_for(about, longest):
            continue
        start = time.monotonic()
        jobs = [step_job(*key, options.small) for key in group]
        with started(jobs, options) as workers:
            found = rounds(workers, options, seconds=min(MAKE_SECONDS, results.seconds_left()))
        longest = max(longest, time.monotonic() - start)
        measured.update(zip(group, found))
        for precision, size in dict.fromkeys((precision, size) for precision, size, name in group if name == PROJECT):
            rows = {name: measured[precision, size, name] for name in COMPARED}
            text = comparison(rows, precision, size, options, peaks.get(precision))
            results.write(f"{precision} {size}", text, rows=records(rows))
        for size in (short, long):
            if sweep(size) and set(sweep(size)) <= set(group):
                sizes = sorted({size, *(key[1] for key in sweep(size))})
                rows = {each: measured["bf16", each, COMPILED] for each in sizes}
                results.write(f"sweep {size}", batch_sweep(rows, options, peaks.get("bf16")), rows=records(rows))


def step_job(precision: str, size: Size, name: str, small: bool) -> Job:
    """In a small run, only one row is compiled."""
    make, compiled = COMPARED[name]
    compiled = compiled and (not small or (precision, size, name) == ("bf16", SMALL_SIZES[0], COMPILED))
    arguments = make, size, name != COMPILED
    return Job(name, step_row, precision, arguments, (*HUGE_PAGES, *COMPILE_THREADS), compiled)


def step_row(options: Options, runtime: Runtime, make: Callable[..., Run], size: Size, resets_peak: bool) -> Run:
    """Several steps per run, after three that compile and warm up.

    resets_peak: the peak memory is that of later steps; not with CUDA graphs, whose memory is taken in the first ones.
    """
    run = make(step_options(options, size), runtime)
    repeat(run, 3)
    free_memory(runtime.device)
    if resets_peak:
        reset_peak(runtime.device)
    return functools.partial(repeat, run, steps_per_run(options, size))


def step_options(options: Options, size: Size) -> throughput.Options:
    return throughput.Options(batch_size=size[0], block_size=size[1], small=options.small, device=options.device)


def steps_per_run(options: Options, size: Size) -> int:
    return 2 if options.small else max(2, STEP_TOKENS // (size[0] * size[1]))


def comparison(rows: dict, precision: str, size: Size, options: Options, peak: float | None) -> str:
    """rows: by name; peak: operations per second of the fastest product."""
    blocks, block_size = size
    header = [
        f"step, {precision}, {blocks} × {block_size} tokens",
        "tok/s",
        "× transformers",
        "× transformers, compiled",
    ]
    lines = [[*header, "MFU", "peak memory", "of transformers'"]]
    baselines = [row if isinstance(row := rows[name], Row) else None for name in (BASELINE, BASELINE_COMPILED)]
    for name, row in rows.items():
        if isinstance(row, Failure):
            lines.append(not_measured(name, row, 7))
            continue
        speed_ups = [f"{ratio(baseline, row):.2f}" if baseline else "" for baseline in baselines]
        memory = f"{row.peak / baselines[0].peak:.2f}" if baselines[0] else ""
        speed = tokens_per_second(row, options, size)
        lines.append(
            [name, f"{speed:,.0f}", *speed_ups, utilisation(speed, options, size, peak), gigabytes(row.peak), memory]
        )
    fastest = min((rows[name] for name in (PROJECT, COMPILED) if isinstance(rows[name], Row)), key=median, default=None)
    targets = []
    if fastest and peak and precision == "bf16":
        targets.append(
            target("MFU of the fastest", mfu(tokens_per_second(fastest, options, size), options, size, peak), 0.45)
        )
    for baseline, least in zip(baselines, (2.5, 1.5)):
        if fastest and baseline:
            targets.append(target(f"speed of {fastest.name} / {baseline.name}", ratio(baseline, fastest), least))
    if isinstance(rows[COMPILED], Row) and baselines[0]:
        share = rows[COMPILED].peak / baselines[0].peak
        targets.append(target(f"peak memory of {COMPILED} / {BASELINE}", share, most=0.35))
    return "\n\n".join([table(*lines), *filter(None, ["\n".join(targets)])])


def batch_sweep(rows: dict, options: Options, peak: float | None) -> str:
    """rows: of this project, compiled, in bf16, by size."""
    lines = [[f"batch, {COMPILED}, bf16", "tok/s", "MFU", "peak memory"]]
    shares = {}
    for size, row in rows.items():
        name = f"{size[0]} × {size[1]}"
        if isinstance(row, Failure):
            lines.append(not_measured(name, row, 4))
            continue
        speed = tokens_per_second(row, options, size)
        lines.append([name, f"{speed:,.0f}", utilisation(speed, options, size, peak), gigabytes(row.peak)])
        shares[name] = mfu(speed, options, size, peak) if peak else 0.0
    best = max(shares, key=shares.get, default=None)
    return table(*lines) + (f"\n\n{target(f'MFU at {best}', shares[best], 0.45)}" if best and peak else "")


def tokens_per_second(row: Row, options: Options, size: Size) -> float:
    return size[0] * size[1] * steps_per_run(options, size) / median(row)


def mfu(speed: float, options: Options, size: Size, peak: float) -> float:
    """Model FLOPs utilisation: the step's matrix products, as a share of the fastest product measured."""
    return speed * training_flops(*configs(options.small), size[1], CHOSEN) / peak


def utilisation(speed: float, options: Options, size: Size, peak: float | None) -> str:
    return f"{mfu(speed, options, size, peak):.1%}" if peak else ""


# ---- a profile -------------------------------------------------------------------------------------------------

PROFILED_STEPS = 3
LISTED = 10
HOST_BOUND = 0.9  # below this share of the time, the GPU waits for the host


def profile_step(options: Options, results: Results) -> None:
    """The largest kernels of the compiled step in bf16; on a CPU, the largest operators."""
    device = choose_device(options.device)
    size, runtime = SMALL_SIZES[0] if options.small else SIZES[0], Runtime(device, "bf16", not options.small)
    run = throughput.project_step(step_options(options, size), runtime)
    repeat(run, 3)
    synchronise(device)
    start = time.monotonic()
    repeat(run, 10)
    synchronise(device)
    wall = (time.monotonic() - start) / 10
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        repeat(run, PROFILED_STEPS)
        synchronise(device)
    times = kernel_times(profiler, on_gpu)
    if not times:
        raise RuntimeError("The profiler has recorded no kernel.")
    total = sum(seconds for _, seconds, _ in times)
    kind = "kernel" if on_gpu else "operator"
    lines = [[kind, f"share of {'GPU' if on_gpu else 'CPU'} time", "ms per step", "calls per step"]]
    for name, seconds, count in sorted(times, key=lambda entry: -entry[1])[:LISTED]:
        cells = f"{seconds / total:.1%}", f"{seconds / PROFILED_STEPS * 1e3:.2f}", f"{count / PROFILED_STEPS:g}"
        lines.append([name.replace("|", "/")[:90], *cells])
    calls = sum(count for _, _, count in times) / PROFILED_STEPS
    busy = total / PROFILED_STEPS / wall
    about = f"{size[0]} × {size[1]} tokens, bf16{', compiled' * runtime.compiled}: {wall * 1e3:.2f} ms per step "
    about += f"without the profiler; {total / PROFILED_STEPS * 1e3:.2f} ms of it in {calls:,.0f} {kind}s."
    if on_gpu:
        bound = "the step is host-bound" if busy < HOST_BOUND else "the step is not host-bound"
        about += f" The GPU computes for {busy:.0%} of the time: {bound}."
    results.write("kernels", f"{about}\n\n{table(*lines)}", kernels=times, wall=wall)


def kernel_times(profiler: profile, on_gpu: bool) -> list[tuple[str, float, int]]:
    """-> name, seconds, calls of each kernel, or of each operator on a CPU without those that it calls."""
    events = [event for event in profiler.key_averages() if not event.is_user_annotation]
    if on_gpu:
        kernels = (event for event in events if event.device_type == DeviceType.CUDA)
        return [(kernel.key, kernel.self_device_time_total / 1e6, kernel.count) for kernel in kernels]
    return [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in events]
