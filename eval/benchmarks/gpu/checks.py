"""Parts of the GPU benchmark: the machine and its peaks, the tests marked `gpu`, and the demo's accuracy."""

import importlib.metadata
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import torch
from safetensors import safe_open

from data.cli import first_line
from data.versions import REPOSITORY
from model.training.device import Runtime, choose_device

from ..harness import free_memory, table
from ..throughput import matrix_product
from . import failures
from .results import RESERVE, Options, Results, seconds_per_run

PRODUCTS = (  # rows, inner, columns; the last two are the step's own: feed-forward and decoder
    *((4096, 4096, 4096), (8192, 8192, 8192), (16384, 4096, 4096)),
    *((16384, 768, 3072), (16384, 768, 32064)),
)
COPY_BYTES = 2**30
PRODUCT_SECONDS = 0.15  # of each measurement
TOLERANCE = 0.02  # of the accuracy after the demo, compared with the CPU
DEMO_STEPS = 300
LISTED = 40  # tests that are listed by name

# ---- environment -----------------------------------------------------------------------------------------------


def environment(options: Options, results: Results) -> None:
    """The machine, its versions, its fastest matrix products and its memory bandwidth."""
    device = choose_device(options.device)
    results.write("machine", table(["", ""], *map(list, machine(device))))
    measured_peaks(options, results)
    try:
        size = 2**20 if options.small else COPY_BYTES
        source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
        seconds = seconds_per_run(lambda: source.clone(), device, PRODUCT_SECONDS)
        speed = 2 * size / seconds
        results.write("copy", f"Memory bandwidth of a copy: {speed / 1e9:,.0f} GB/s, read and written", bandwidth=speed)
    except RuntimeError as error:
        results.write("copy", f"Memory bandwidth: not measured: {first_line(error)}")


def machine(device: torch.device) -> Iterator[tuple[str, str]]:
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        yield "GPU", about.name
        yield "memory", f"{about.total_memory / 1e9:.1f} GB"
        yield "compute capability", f"{about.major}.{about.minor}"
        yield "multiprocessors", str(about.multi_processor_count)
        yield "CUDA of torch", str(torch.version.cuda)
    yield "processor", f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"
    yield "Python", platform.python_version()
    for package in ("torch", "triton", "transformers", "numpy", "liger-kernel"):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"


def measured_peaks(options: Options, results: Results) -> dict[str, float]:
    """Operations per second of the fastest of several matrix products of random numbers, by precision."""
    device, shapes = choose_device(options.device), [(64, 64, 64), (64, 32, 128)] if options.small else PRODUCTS
    lines, peaks = [["TFLOP/s of a product", *(" × ".join(map(str, shape)) for shape in shapes)]], {}
    default = torch.get_float32_matmul_precision()
    for name in ("bf16", "fp16", "fp32", "fp32 with TF32"):
        torch.set_float32_matmul_precision("high" if name == "fp32 with TF32" else "highest")
        cells, speeds = [], []
        for shape in shapes:
            try:
                run = matrix_product(options, Runtime(device, name.split()[0]), *shape)
                seconds = seconds_per_run(run, device, 0.01 if options.small else PRODUCT_SECONDS)
                speeds.append(2 * math.prod(shape) / seconds)
                cells.append(f"{speeds[-1] / 1e12:,.3g}")
            except RuntimeError as error:
                cells.append(f"not measured: {first_line(error)}")
            run = None
            free_memory(device)
        if speeds:
            peaks[name] = max(speeds)
        lines.append([name, *cells])
        results.write("products", table(*lines), peaks=peaks)
    torch.set_float32_matmul_precision(default)
    return peaks


# ---- correctness -----------------------------------------------------------------------------------------------


def correctness(options: Options, results: Results) -> None:
    """The tests marked `gpu`: on the GPU if there is one."""
    processes = str(min(12, os.cpu_count() or 1))
    # one test at a time, taken from whoever has most left: a file whose tests compile would keep one process busy
    run_tests(REPOSITORY, ["-m", "gpu", "-n", processes, "--dist", "worksteal"], results)


def run_tests(folder: Path, arguments: Sequence[str], results: Results) -> None:
    """Runs pytest in the folder, and reports each test that failed or was skipped."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", *arguments, "-vv", "--tb=short", f"--junitxml={report}"]
        command += ["-p", failures.__name__]
        variables = {"PYTHONPATH": str(REPOSITORY), "TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no processes to compile in
        status, output = finish(*start(command, folder, **variables), results.deadline - RESERVE)
        found = junit_results(report) if report.exists() else list(printed_results(output))
    counts = Counter(outcome for outcome, _, _ in found)
    names = ("passed", "failed", "skipped")
    summary = ", ".join(f"{counts[name]} {name}" for name in names)
    if status is None:
        summary += "; stopped at the time limit before the last test"
    elif status == 5:
        summary += "; no test is marked gpu"
    elif status not in (0, 1):
        summary += f"; pytest ended with status {status}: {last_line(output)}"
    lines = [f"- {outcome}: {name}: {reason}" for outcome, name, reason in sorted(found) if outcome != "passed"]
    if len(lines) > LISTED:
        lines[LISTED:] = [f"- and {len(lines) - LISTED} more, in log.txt"]
    results.write("tests", "\n".join([f"Tests marked `gpu`: {summary}.", "", *lines]).strip(), tests=found)
    results.check("tests marked `gpu`", status == 0)


def junit_results(report: Path) -> list[tuple[str, str, str]]:
    """-> passed, failed or skipped; the test; the first line of the reason."""
    found = []
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        outcome, reason = "passed", ""
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                outcome = "skipped" if child.tag == "skipped" else "failed"
                reason = (child.get("message") or child.text or "").strip().split("\n")[0][:200]
        found.append((outcome, f"{case.get('classname')}::{case.get('name')}", reason))
    return found


def printed_results(output: str) -> Iterator[tuple[str, str, str]]:
    """The same from pytest's output, of a run that has not come to its end."""
    outcomes = {"PASSED": "passed", "FAILED": "failed", "ERROR": "failed", "SKIPPED": "skipped"}
    for outcome, name in re.findall(r"^\[gw\d+\].*? (PASSED|FAILED|ERROR|SKIPPED) (.+?) *$", output, re.MULTILINE):
        yield outcomes[outcome], name, "see log.txt"


def start(command: Sequence[str], folder: Path = REPOSITORY, **variables: str) -> tuple[subprocess.Popen, IO[str]]:
    """Starts a command with further environment variables -> the process, the file that receives what it prints."""
    output = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
    environment = {**os.environ, **variables}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    return process, output


def finish(process: subprocess.Popen, output: IO[str], deadline: float) -> tuple[int | None, str]:
    """Waits for the process, prints its output -> exit status, None if it was stopped at the deadline; the output."""
    try:
        status = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        status = None
    with output:
        output.seek(0)
        printed = output.read()
    print(f"{shlex.join(process.args)}\n{printed}", flush=True)
    return status, printed


def last_line(output: str) -> str:
    return output.strip().split("\n")[-1][:200]


# ---- demo ------------------------------------------------------------------------------------------------------


def demo(options: Options, results: Results) -> None:
    """python train.py in every precision, all at the same time, compared with fp32 on the CPU.

    The compiled run takes two micro-batches of half the size per step: CUDA graphs must not change what is summed.
    """
    device, cpus = choose_device(options.device), os.cpu_count() or 1
    steps, block_size = (10, 32) if options.small else (DEMO_STEPS, 128)
    runs = {  # name -> device, further options
        "CPU, fp32": ("cpu", "--precision fp32 --compile off"),
        f"{device}, bf16": (str(device), "--precision bf16 --compile off"),
        f"{device}, fp16": (str(device), "--precision fp16 --compile off"),
        f"{device}, bf16, compiled": (str(device), "--precision bf16 --compile on --batch-size 4 --accumulate 2"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        started = {}
        for name, (place, words) in runs.items():
            out = Path(scratch) / name
            command = f"train.py --steps {steps} --block-size {block_size} --device {place} {words}"
            command = [sys.executable, *command.split(), "--out", str(out), "--cache", str(out / "cache")]
            threads = cpus - 2 * (len(runs) - 1) if place == "cpu" and not started else 2
            started[name] = start(command, OMP_NUM_THREADS=str(max(1, min(threads, cpus // 2))))
        finished = {}
        for name, run in started.items():
            finished[name] = result_of_run(*finish(*run, results.deadline - RESERVE), Path(scratch) / name)
    report_demo(finished, steps, results, has_verdict=not options.small)


def result_of_run(status: int | None, printed: str, out: Path) -> dict:
    """-> the accuracies and the speed of a run of train.py, or {"failure": reason}."""
    if status != 0:
        return {"failure": "stopped at the time limit" if status is None else last_line(printed)}
    with safe_open(out / "student.safetensors", "pt") as file:
        accuracy = json.loads(file.metadata()["provenance"])["held_out_accuracy"]
    last = json.loads((out / "metrics.jsonl").read_text(encoding="utf-8").strip().split("\n")[-1])
    first = re.search(r"the first gradient took (\d+) s", printed)
    return {**accuracy, "tokens_per_second": last["tokens_per_second"], "first_step": first and int(first[1])}


def report_demo(finished: dict[str, dict], steps: int, results: Results, has_verdict: bool) -> None:
    """finished: by name of the run, the reference first."""
    lines = [[f"python train.py, {steps} steps", "teacher", "before", "after", "to the CPU's", "tok/s", "first step"]]
    reference = next(iter(finished.values()))
    for name, run in finished.items():
        if "failure" in run:
            lines.append([name, f"not measured: {run['failure']}", *[""] * 5])
            continue
        shares = [f"{run[key]:.2%}" for key in ("teacher", "student before", "student after")]
        difference = ""
        if "failure" not in reference:
            difference = f"{100 * (run['student after'] - reference['student after']):+.2f} points"
        first = f"{run['first_step']} s" if run["first_step"] is not None else ""
        lines.append([name, *shares, difference, f"{run['tokens_per_second']:,.0f}", first])
    about = "Accuracy on masked tokens of held-out text. All runs at the same time, so their speeds are rough."
    results.write("demo", f"{table(*lines)}\n\n{about}", runs=finished)
    for name, run in finished.items():
        if not has_verdict or run is reference:
            results.check(f"demo, {name}: finished", "failure" not in run)
            continue
        compared = "failure" not in run and "failure" not in reference
        close = compared and abs(run["student after"] - reference["student after"]) <= TOLERANCE
        results.check(f"demo, {name}: accuracy within {100 * TOLERANCE:g} points of the CPU's", close)
