"""Benchmark of a GPU: correctness and speed of training and inference, in at most nine minutes and a half.

The parts run one after the other, each in its own process and with its own time limit, in this order: environment
(versions, fastest matrix products), correctness (the tests marked gpu), demo (train.py in every precision), step (the
distillation step compared with transformers' models), loss (the loss alone), inference, profile. Results are written as
they are measured: summary.md for people, results.jsonl with every measurement, log.txt with all that was printed. They
replace those of an earlier run in the folder. The exit status is 1 if a check failed or a part did not finish.
"""

import functools
import multiprocessing
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.cli import parse_options, say
from data.outputs import write_file
from data.versions import REPOSITORY, commit

from ...processes import exit_on_sigterm, kill_group, print_into
from ...results import check_writable
from ..harness import heading
from .checks import correctness, demo, environment
from .inference import inference
from .loss import loss
from .results import CHECK, RECORDS, Options, Results, read_records
from .step import profile_step, step

SUMMARY, LOG = "summary.md", "log.txt"
POLL_SECONDS = 0.5
LAST_LINES = 8  # of the log, for a part that failed


@dataclass(frozen=True)
class Part:
    name: str
    seconds: int  # its time limit; what it does not use is left to the parts after it
    run: Callable[[Options, Results], None]


ALL_PARTS = (
    Part("environment", 25, environment),
    Part("correctness", 165, correctness),
    Part("demo", 75, demo),
    Part("step", 140, step),
    Part("loss", 50, loss),
    Part("inference", 60, inference),
    Part("profile", 40, profile_step),
)


def main(arguments: list[str] | None = None) -> int:
    """The command -> exit status.  Raises OptionError."""
    options = parse_options(Options, arguments, "python -m eval gpu [OPTIONS]", __doc__)
    report = [*heading("gpu", options, arguments), driver_and_commit()]
    if options.small:
        report.append("Tiny models and sizes, as a test of the command: its speeds, ratios and targets mean nothing.")
    folder = Path(options.out)
    check_writable(folder / SUMMARY)
    for name in (SUMMARY, RECORDS, LOG):
        (folder / name).unlink(missing_ok=True)
    say("\n\n".join(report))
    return run_parts([part for part in ALL_PARTS if part.name in options.only], options, report)


def driver_and_commit() -> str:
    """What only other programs know."""
    driver = output_of(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.max.sm", "--format=csv,noheader"
    )
    return f"NVIDIA driver: {driver or 'none'}. Commit: {commit(REPOSITORY) or 'unknown'}."


def output_of(*command: str) -> str:
    """What a program prints, "" if it is missing or fails."""
    try:
        finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return finished.stdout.strip() if finished.returncode == 0 else ""


# ---- processes -------------------------------------------------------------------------------------------------


def run_parts(parts: Sequence[Part], options: Options, report: Sequence[str]) -> int:
    """Runs the parts, and keeps summary.md up to date -> exit status."""
    folder, outcomes, deadline = Path(options.out), {}, time.monotonic()
    update = functools.partial(write_summary, folder, report, parts, outcomes)
    with exit_on_sigterm():
        for part in parts:
            deadline += part.seconds
            say(f"\n{part.name}: at most {deadline - time.monotonic():.0f} s")
            outcomes[part.name] = run_part(part, options, deadline, update)
            update()
            say(f"{part.name}: {outcomes[part.name]}")
    print(f"\n{(folder / SUMMARY).read_text(encoding='utf-8')}", flush=True)
    failed = [record for record in read_records(folder) if record.get("passed") is False]
    return int(bool(failed) or any(not outcome.startswith("finished") for outcome in outcomes.values()))


def run_part(part: Part, options: Options, deadline: float, update: Callable[[], None]) -> str:
    """Runs a part in a process group of its own, which is killed at the deadline -> how it ended."""
    log, start, size = Path(options.out) / LOG, time.monotonic(), 0
    records = Path(options.out) / RECORDS
    logged = log.stat().st_size if log.exists() else 0
    process = multiprocessing.get_context("spawn").Process(target=part_process, args=(part, options, deadline))
    process.start()
    try:
        while process.is_alive() and time.monotonic() < deadline:
            process.join(POLL_SECONDS)
            if records.exists() and records.stat().st_size != size:
                size = records.stat().st_size
                update()
        stopped = process.is_alive()
    finally:
        kill_group(process)
    seconds = f"{time.monotonic() - start:.0f} s"
    if stopped:
        return f"stopped after {seconds}, its time limit; what it had measured is below"
    if process.exitcode:
        with log.open(encoding="utf-8", errors="replace") as file:
            file.seek(logged)
            lines = file.read().strip().split("\n")[-LAST_LINES:]
        return f"failed after {seconds} with status {process.exitcode}:\n\n```\n" + "\n".join(lines) + "\n```"
    return f"finished in {seconds}"


def part_process(part: Part, options: Options, deadline: float) -> None:
    print_into(Path(options.out) / LOG)
    print(f"\n==== {part.name} ====", flush=True)
    try:
        part.run(options, Results(Path(options.out), part.name, deadline))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        sys.exit(1)


# ---- the summary -----------------------------------------------------------------------------------------------


def write_summary(folder: Path, report: Sequence[str], parts: Sequence[Part], outcomes: dict[str, str]) -> None:
    """summary.md: the heading, how each part ended, and the newest text of each of its blocks."""
    blocks: dict[str, dict[str, str]] = {}
    for record in read_records(folder):
        blocks.setdefault(record["part"], {})[record["key"]] = record["text"]
    lines = list(report)
    for part in parts:
        outcome = outcomes.get(part.name, "running" if part.name in blocks else "not started")
        texts = blocks.get(part.name, {})
        checks = [text for key, text in texts.items() if key.startswith(CHECK)]
        lines += [f"### {part.name}: {outcome}", *(text for text in texts.values() if text not in checks)]
        lines += ["\n".join(checks)] if checks else []
    write_file(folder / SUMMARY, ("\n\n".join(lines) + "\n").encode())
