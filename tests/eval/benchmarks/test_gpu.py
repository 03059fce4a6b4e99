"""The GPU benchmark, on a CPU: what it measures and reports, and that no failure of a part or row loses the others."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eval.benchmarks import throughput
from eval.benchmarks.gpu import checks, command
from eval.benchmarks.gpu.command import ALL_PARTS, Part
from eval.benchmarks.gpu.results import PARTS, RESERVE, Options, Results, read_records, target
from eval.benchmarks.harness import Failure, Job, Row, rounds, started
from tests.helpers import run_command

REPORT = ["## a heading"]


def run_parts(folder: Path, *parts: Part) -> tuple[int, str]:
    """-> exit status, summary."""
    status = command.run_parts(parts, options_in(folder), REPORT)
    return status, (folder / "summary.md").read_text(encoding="utf-8")


def options_in(folder: Path) -> Options:
    return Options(out=str(folder), small=True, device="cpu", repetitions=1)


def test_the_whole_command_on_tiny_models(tmp_path):
    """All parts but those that run the tests and train.py."""
    parts = ["environment", "step", "loss", "inference", "profile"]
    sizes = ["--small", "--device", "cpu", "--repetitions", "1", "--out", str(tmp_path / "out")]
    result = run_command("-m eval", "gpu", *sizes, "--only", *parts)
    summary = (tmp_path / "out" / "summary.md").read_text(encoding="utf-8")
    assert result.returncode == 0 and summary in result.stdout, result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log.txt", "results.jsonl", "summary.md"]
    assert re.findall(r"^### (\w+): finished in \d+ s$", summary, re.MULTILINE) == parts
    for words in (
        *("python -m eval gpu --small", "Commit: ", "NVIDIA driver: ", "| Python", "| bf16", "fp32 with TF32"),
        *("step, bf16, 2 × 16 tokens", "step, fp16, 1 × 32 tokens", "batch, this project", "| 4 × 16", "MFU at "),
        *("transformers, compiled", "at least 2.5", "at most 0.35"),
        *("fused, compiled", "Liger-Kernel, JSD", "N = 256", "× teacher", "batch 4", "aten::"),
    ):
        assert words in summary, words
    measured = [part for part in read_records(tmp_path / "out") for row in part.get("rows", ()) if "seconds" in row]
    assert {part["part"] for part in measured} == {"step", "loss", "inference"}
    assert re.search(r"\| this project, compiled +\| +[\d,]+ +\| [\d.]+ +\| [\d.]+ +\| [\d.]+% +\| [\d.]+ GB", summary)
    not_measured = re.findall(r"not measured: (.*?) *\|", summary)
    assert set(not_measured) <= {"liger_kernel is not installed", "triton is not installed"}


def test_the_limits_fit_into_ten_minutes_with_the_start_of_a_machine():
    assert tuple(part.name for part in ALL_PARTS) == PARTS
    assert sum(part.seconds for part in ALL_PARTS) <= 560


def test_a_part_that_exceeds_its_limit_is_killed_with_its_children(tmp_path):
    status, summary = run_parts(tmp_path, Part("slow", 10, slow_part), Part("next", 30, good_part))
    assert status == 1
    assert re.search(r"^### slow: stopped after 1\d s, its time limit; what it had measured is below$", summary, re.M)
    assert "measured before the limit" in summary and "### next: finished" in summary and "a good result" in summary
    child = next(record["child"] for record in read_records(tmp_path) if "child" in record)
    time.sleep(0.2)
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]


def slow_part(options: Options, results: Results) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    results.write("row", "measured before the limit", child=child.pid)
    time.sleep(600)


def good_part(options: Options, results: Results) -> None:
    results.write("row", "replaced by the second")
    results.write("row", "a good result")
    print("only in the log")


def test_a_part_that_fails(tmp_path):
    parts = Part("bad", 60, bad_part), Part("dead", 60, dead_part), Part("good", 60, good_part)
    status, summary = run_parts(tmp_path, *parts)
    assert status == 1 and summary.startswith("## a heading\n\n### bad: failed after")
    assert "ValueError: no such kernel\n```" in summary and "measured before the error" in summary
    assert re.search(r"### dead: failed after \d+ s with status 3", summary)
    assert "a good result" in summary and "replaced by the second" not in summary and "only in the log" not in summary
    assert "only in the log" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def bad_part(options: Options, results: Results) -> None:
    results.write("row", "measured before the error")
    raise ValueError("no such kernel")


def dead_part(options: Options, results: Results) -> None:
    os._exit(3)


def test_a_failed_check_gives_exit_status_1(tmp_path):
    status, summary = run_parts(tmp_path, Part("checks", 60, checking_part))
    assert status == 1 and "### checks: finished" in summary
    assert "- one thing: passed\n- another: FAILED\n" in summary


def checking_part(options: Options, results: Results) -> None:
    results.check("one thing", True)
    results.check("another", False)


def test_a_row_that_fails_leaves_the_others(tmp_path):
    jobs = [
        Job("cannot be made", raising_row, "fp32", (0,)),
        Job("cannot be run", raising_row, "fp32", (2,)),
        Job("dies", dying_row, "fp32"),
        Job("product", throughput.matrix_product, "fp32", (8, 8)),
    ]
    options = options_in(tmp_path)
    with started(jobs, options) as workers:
        first = rounds(workers, options, (8,))
        second = rounds(workers, options, (16,), together=False)
    for found in (first, second):
        assert isinstance(found[-1], Row) and len(found[-1].seconds) == 1
        reasons = [failure.reason for failure in found if isinstance(failure, Failure)]
        assert reasons[:2] == ["RuntimeError: call 0", "RuntimeError: call 2"] and "its process died" in reasons[2]


def test_a_row_that_hangs_is_ended(tmp_path):
    with started([Job("hangs", hanging_row, "fp32")], options_in(tmp_path)) as workers:
        (failure,) = rounds(workers, options_in(tmp_path), (8,), seconds=0.5)
        assert failure == Failure("hangs", "not ready in time")
        workers[0].process.join(timeout=10)
        assert not workers[0].process.is_alive()


def raising_row(options, runtime, good_calls: int, size: int):
    if good_calls == 0:
        raise RuntimeError("call 0")
    calls = iter(range(1, 10))

    def run():
        if (number := next(calls)) == good_calls:
            raise RuntimeError(f"call {number}")

    return run


def dying_row(options, runtime, size: int):
    os._exit(1)


def hanging_row(options, runtime, size: int):
    time.sleep(600)


def test_the_correctness_part_reports_each_test_that_does_not_pass(tmp_path):
    folder, out = tmp_path / "tests", tmp_path / "out"
    folder.mkdir(), out.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    tests = "import pytest\n@pytest.mark.gpu\ndef test_one(): pass\n@pytest.mark.gpu\ndef test_two(): assert 1 == 2\n"
    tests += "@pytest.mark.gpu\ndef test_three(): pytest.skip('no file')\ndef test_unmarked(): assert False\n"
    (folder / "test_stub.py").write_text(tests)
    results = Results(out, "correctness", time.monotonic() + 60)
    checks.run_tests(folder, ["-m", "gpu", "-p", "no:xdist", "-p", "no:cacheprovider"], results)
    block, verdict = read_records(out)
    assert "1 passed, 1 failed, 1 skipped." in block["text"] and verdict["passed"] is False
    assert "- failed: test_stub::test_two: assert 1 == 2" in block["text"] and "test_unmarked" not in block["text"]
    assert "- skipped: test_stub::test_three: no file" in block["text"]


def test_a_failure_is_in_the_log_of_a_run_that_is_stopped(tmp_path, capsys):
    folder, out = tmp_path / "tests", tmp_path / "out"
    folder.mkdir(), out.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_stub.py").write_text("import time\ndef test_one(): assert 1 == 2\ndef test_two(): time.sleep(60)\n")
    results = Results(out, "correctness", time.monotonic() + RESERVE + 4)
    checks.run_tests(folder, ["-n", "1", "-p", "no:cacheprovider"], results)
    assert "assert 1 == 2" in capsys.readouterr().out
    block, verdict = read_records(out)
    assert "0 passed, 1 failed, 0 skipped; stopped at the time limit" in block["text"] and not verdict["passed"]


def test_what_no_time_is_left_for_is_named(tmp_path):
    results = Results(tmp_path, "step", time.monotonic() + RESERVE + 20)
    assert results.has_time_for("first", 0.0) and not results.has_time_for("second", 30.0)
    (record,) = read_records(tmp_path)
    assert record["text"] == "second: not measured: 25 s were left"


def test_the_tests_of_a_run_that_was_stopped():
    output = "[gw0] [ 33%] PASSED tests/a.py::test_one[fp16] \n[gw1] [ 66%] FAILED tests/a.py::test_two \n"
    found = list(checks.printed_results(output))
    assert found == [
        ("passed", "tests/a.py::test_one[fp16]", "see log.txt"),
        ("failed", "tests/a.py::test_two", "see log.txt"),
    ]


@pytest.mark.parametrize(("after", "passed"), [(0.41, True), (0.37, False), (0.439, False), (None, False)])
def test_the_demos_accuracy_is_compared_with_the_cpus(tmp_path, after, passed):
    cpu = {"teacher": 0.7, "student before": 0.2, "student after": 0.4, "tokens_per_second": 1e3, "first_step": None}
    gpu = {"failure": "out of memory"} if after is None else {**cpu, "student after": after, "first_step": 30}
    results = Results(tmp_path, "demo", time.monotonic() + 60)
    checks.report_demo({"CPU, fp32": cpu, "cuda, bf16": gpu}, 300, results, has_verdict=True)
    block, ran, verdict = read_records(tmp_path)
    assert ran["passed"] and verdict["passed"] is passed, block["text"]
    assert ("not measured: out of memory" if after is None else f"{100 * (after - 0.4):+.2f} points") in block["text"]


def test_records_survive_half_a_line(tmp_path):
    Results(tmp_path, "step", 0.0).write("key", "text", peaks={"bf16": 1.0})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"part": "loss", "ke')
    assert read_records(tmp_path) == [{"part": "step", "key": "key", "text": "text", "peaks": {"bf16": 1.0}}]
    other = Results(tmp_path, "loss", 0.0)
    assert other.find("peaks") == {"bf16": 1.0} and other.find("unknown") is None


def test_targets():
    assert target("MFU", 0.46, 0.45) == "- MFU: 0.46 (target: at least 0.45): reached"
    assert target("speed", 2.4, 2.5).endswith("not reached")
    assert target("memory", 0.36, most=0.35) == "- memory: 0.36 (target: at most 0.35): not reached"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "--only must be"),
        (["--only", "step", "step"], "--only step step has duplicates."),
        (["--device", "nonsense"], "--device must be auto, cpu, cuda"),
        (["--repetitions", "0"], "--repetitions must be at least 1"),
        (["--device", "cpu", "--out", "README.md/x"], "cannot be written"),
    ],
)
def test_errors(arguments, message):
    result = run_command("-m eval", "gpu", *arguments)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_cuda_without_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run_command("-m eval", "gpu", "--device", "cuda")
    assert result.returncode == 2 and "--device cuda is not available on this machine" in result.stderr
