"""Part of the GPU benchmark: inference on sequences of mixed length."""

import time

import torch

from model.training.device import Runtime

from .. import speed
from ..harness import Failure, Job, Run, configs, ratio, rounds, started, table
from ..speed_rows import STUDENT, TEACHER, TRANSFORMERS, project_row, transformers_row
from .results import MAKE_SECONDS, Options, Results, median, not_measured, records, target

BATCHES = (1, 32, 256)
THREADS = (("OMP_NUM_THREADS", "2"),)  # the six processes start together, and fill their models on the CPU
TARGET, TARGET_BATCH = 1.9, 32  # speed of the student / teacher, at this batch or more


def inference(options: Options, results: Results) -> None:
    """Student and teacher without padding, and transformers' student with padding."""
    names, precisions = (STUDENT, TEACHER, TRANSFORMERS), ("bf16", "fp32")
    jobs = [Job(name, inference_row, precision, (name,), THREADS) for precision in precisions for name in names]
    lines, targets, (shortest, longest) = [], [], bounds(options.small)
    with started(jobs, options) as workers:
        slowest = 0.0  # seconds
        for batch in (1, 4) if options.small else BATCHES:
            if not results.has_time_for(f"batch {batch}", slowest):
                break
            start = time.monotonic()
            found = rounds(workers, options, (batch,), seconds=MAKE_SECONDS)
            for number, precision in enumerate(precisions):
                rows = dict(zip(names, found[number * len(names) :]))
                teacher = rows[TEACHER]
                for name, row in rows.items():
                    title = f"{name}, {precision}, batch {batch}"
                    if isinstance(row, Failure):
                        lines.append(not_measured(title, row, 4))
                        continue
                    times = median(row) / runs(batch)
                    speed_up = "" if isinstance(teacher, Failure) else f"{ratio(teacher, row):.2f}"
                    lines.append([title, f"{times * 1e3:,.2f} ms", f"{batch / times:,.0f}", speed_up])
                student = rows[STUDENT]
                measured = not (isinstance(student, Failure) or isinstance(teacher, Failure))
                if measured and batch >= TARGET_BATCH:
                    what = f"speed of the student / teacher, {precision}, batch {batch}"
                    targets.append(target(what, ratio(teacher, student), TARGET))
            header = [f"inference, {shortest} to {longest} tokens", "time", "sequences/s", "× teacher"]
            text = "\n\n".join([table(header, *lines), "\n".join(targets)]).strip()
            about = {f"{job.precision} {job.name}": row for job, row in zip(jobs, found)}
            results.write("inference", text, batch=batch, rows=records(about))
            slowest = max(slowest, (time.monotonic() - start) / 2)  # the first batch waits for the processes


def inference_row(options: Options, runtime: Runtime, name: str, batch: int) -> Run:
    """The last hidden states of one batch, in one call of the model."""
    texts = random_texts(options, batch)
    settings = speed.Options(small=options.small, device=options.device, batch_tokens=10**7)
    if name == TRANSFORMERS:
        return transformers_row(settings, runtime, texts, [list(range(batch))], runs(batch))
    return project_row(settings, runtime, name, texts, runs(batch))


def random_texts(options: Options, batch: int) -> list[list[int]]:
    """Random ids; the lengths are spread evenly between the shortest and the longest, in random order."""
    shortest, longest = bounds(options.small)
    generator, vocab_size = torch.Generator().manual_seed(0), configs(options.small)[0].vocab_size
    lengths = [round(shortest + (longest - shortest) * (i + 0.5) / batch) for i in range(batch)]
    order = torch.randperm(batch, generator=generator).tolist()
    return [torch.randint(5, vocab_size, (lengths[i],), generator=generator).tolist() for i in order]


def bounds(small: bool) -> tuple[int, int]:
    """Tokens of the shortest and of the longest sequence."""
    return (5, 64) if small else (5, 512)


def runs(batch: int) -> int:
    """Per measurement, so that it is long enough to be timed."""
    return 20 if batch < TARGET_BATCH else 5
