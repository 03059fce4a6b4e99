"""The inference benchmark: it measures models that agree, on the texts that it says."""

import json
import platform
from unittest.mock import Mock

import pytest
import torch

from data import demo
from data.cli import DataError, OptionError
from data.tokenizer import Tokenizer
from eval.benchmarks import speed, speed_rows
from eval.benchmarks.harness import Row, configs, processor
from eval.benchmarks.speed_rows import ONNX, STUDENT, TEACHER, TRANSFORMERS, TRANSFORMERS_WAYS
from model import Encoder, EncoderConfig, ModelError, save_model
from model.checkpoints.export import export_huggingface
from tests.helpers import REAL_TEXT, REAL_TOKENIZER, needs, relative_norm, run_command

SIZES = ["--lines", "8", "--longest", "40", "--fixed", "2", "16", "--repetitions", "2", "--device", "cpu"]
CPU = torch.device("cpu")


def test_the_whole_command_on_tiny_models(tmp_path, monkeypatch):
    """Without ONNX Runtime, whose rows test_int8_and_rows_of_onnx_runtime has."""
    pytest.importorskip("transformers")
    monkeypatch.setattr(speed, "missing_for_onnx", lambda: ["onnx", "onnxruntime"])
    out, on_disk = tmp_path / "speed.json", []

    def say(text):
        on_disk.append((text, json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}))
        print(text)

    monkeypatch.setattr(speed, "say", say)
    result = run_command("-m eval", "speed", "--small", *SIZES, "--only", "mixed", "latency", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "Hidden states of 8 lines agree with those of transformers" in result.stdout
    assert "No rows of ONNX Runtime: pip install onnx onnxruntime" in result.stdout
    for words in ("mixed lengths, 8 lines", "longest 40", "latency, one sentence of", "sorted by length", "one by one"):
        assert words in result.stdout
    values = json.loads(out.read_text(encoding="utf-8"))
    assert {part: len(rows["fp32"]) for part, rows in values["rows"].items()} == {"mixed": 5, "latency": 3}
    assert all(len(row["seconds"]) == 2 for rows in values["rows"].values() for row in rows["fp32"])
    assert [verdict["part"] for verdict in values["verdicts"]] == ["mixed", "latency"]
    for words, part in (("mixed lengths, 8 lines", "mixed"), ("latency, one sentence of", "latency")):
        (before,) = (written for text, written in on_disk if words in text)
        assert before["rows"][part] == values["rows"][part]  # on disk before it was printed
    assert values["differences"]["transformers"] < speed.TOLERANCE and values["options"]["fixed"] == [2, 16]


def test_equal_predictions_are_a_target_of_trained_weights_only():
    assert speed.share_line("int8", 0.92, 50, trained=True).endswith("(minimum 99.0%): not reached")
    assert "reached" not in speed.share_line("int8", 0.92, 50, trained=False)


def test_files_another_precision_and_no_transformers(tmp_path, monkeypatch, capsys):
    """Models and text from files; the predictions in bf16 are compared; transformers is reported as not installed."""
    monkeypatch.setattr(speed, "transformers_model", Mock(side_effect=ImportError(name="transformers")))
    monkeypatch.setattr(speed, "missing_for_onnx", lambda: ["onnx"])
    monkeypatch.setattr(speed, "LOG", tmp_path / "LOG.md")
    student, teacher = configs(small=True)
    save_model(Encoder(student), tmp_path / "student.safetensors")
    export_huggingface(Encoder(teacher), tmp_path / "teacher", Tokenizer(demo.FOLDER))
    text = tmp_path / "text.txt"
    text.write_text("Un.\n\n" + "Jeanne est née à Nice. Elle est infirmière.\n" * 20, encoding="utf-8")
    files = f"--teacher {tmp_path}/teacher --student {tmp_path}/student.safetensors --text {text}"
    rest = f"--tokenizer {demo.FOLDER} --only fixed --precision fp32 bf16 --log --out {tmp_path}/speed.json"
    speed.main([*files.split(), *rest.split(), *SIZES])
    output = capsys.readouterr().out
    assert "transformers, which is not installed" in output and TRANSFORMERS not in output
    assert "predictions are the same as in fp32 (minimum 99.5%)" in output and "× as fast as teacher" in output
    assert "| bf16" in (tmp_path / "LOG.md").read_text(encoding="utf-8")
    values = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert values["equal predictions"]["bf16"] > 0.5 and str(text) in values["files"]


def test_number_and_lengths_of_mixed_texts():
    tokenizer, lines = Tokenizer(demo.FOLDER), speed.read_lines(None)
    texts = speed.mixed_texts(lines, tokenizer, 60, 300)
    lengths = sorted(map(len, texts))
    assert len(texts) == 60 and lengths[-1] == 300 and lengths[-2] < 120 and lengths[0] < 20 and len(set(lengths)) > 20
    assert texts[1] == tokenizer.encode(lines[len(lines) // 60])
    assert all(ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id for ids in texts)
    middle = 30 * len(lines) // 60
    assert texts[30][:-1] == tokenizer.encode(" ".join(lines[middle : middle + 40]))[:299]
    assert max(map(len, speed.mixed_texts(lines, tokenizer, 60, 16))) == 16


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_real_lines():
    options = speed.Options(text=str(REAL_TEXT / "ud_french_sentences.txt"), tokenizer=str(REAL_TOKENIZER))
    student, lines = EncoderConfig.distilcamembert(), speed.read_lines(options.text)
    texts = speed.texts_of_parts(
        options, speed.open_tokenizer(options, student), lines, student, EncoderConfig.camembert()
    )
    lengths = {part: [len(ids) for ids in texts[part]] for part in texts}
    assert len(lengths["mixed"]) == 256 and max(lengths["mixed"]) == 512 and 25 < sum(lengths["mixed"]) / 256 < 45
    assert abs(lengths["latency"][0] - 20) <= 2 and lengths["fixed"] == [128] * 32


def test_too_little_text():
    for count, longest, message in ((4, 10, "only 3 lines"), (3, 100, "second half of the text has only")):
        with pytest.raises(OptionError, match=message):
            speed.mixed_texts(["Un.", "Deux.", "Trois."], Tokenizer(demo.FOLDER), count, longest)


@pytest.mark.parametrize("strategy", range(4))
def test_hidden_states_are_those_of_transformers(strategy):
    """Each text, with each of the batching strategies, and small batches here."""
    pytest.importorskip("transformers")
    encoder = Encoder(configs(small=True)[0]).eval()
    texts = [torch.randint(7, 1005, (n,)).tolist() for n in [5, 40, 5, 17, *range(3, 70, 2), 120]]
    batches = [*speed_rows.batching_strategies([len(ids) for ids in texts]).values()][strategy]
    assert sorted(i for batch in batches for i in batch) == [*range(len(texts))]
    actual = speed_rows.hidden_states(speed_rows.frozen(encoder, "fp32"), texts, CPU, budget=64)
    expected = speed_rows.transformers_states(speed_rows.transformers_model(encoder), texts, CPU, batches)
    for ids, one, other in zip(texts, actual, expected, strict=True):
        assert one.shape == (len(ids), 64) and relative_norm(one, other) < 1e-5


def test_another_model_is_refused():
    """The speeds of models that compute something else are not compared."""
    one, other = [torch.ones(2, 3), torch.ones(1, 3)], [torch.ones(2, 3), torch.full((1, 3), 1.01)]
    assert speed.agreement(one, one, "transformers") == 0.0
    with pytest.raises(ModelError, match="from those of transformers by .*: the two do not compute the same"):
        speed.agreement(one, other, "transformers")


def test_memory_of_int8_and_of_onnx_runtime(tmp_path, capsys):
    """ONNX Runtime's graphs agree with the student; memory is measured beyond the imports."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    arguments = ["--small", *SIZES, "--only", "memory", "--precision", "int8", "--repetitions", "1"]
    speed.main([*arguments, "--out", str(tmp_path / "speed.json")])
    values = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert values["differences"][ONNX] < speed.TOLERANCE
    rows = values["rows"]["memory"]["int8"]
    assert [row["name"] for row in rows] == [STUDENT, *(f"{ONNX} int8, scales per {x}" for x in ("channel", "tensor"))]
    assert all(0 <= row["extra"] < 5 * 10**8 for row in rows)
    (verdict,) = values["verdicts"]
    assert verdict["reached"] == (verdict["bytes"] <= 150e6) and "at most 150 MB" in capsys.readouterr().out


def test_rows_of_onnx_runtime():
    """Its ways for mixed lengths, the batch as it is otherwise; no row of transformers in int8."""
    texts, graphs = [[5, 8, 6], [5, 6]] * 20, {f"{ONNX} int8": "graph"}
    mixed, fixed = (speed_rows.jobs_of(part, texts, "int8", True, graphs, 1) for part in ("mixed", "fixed"))
    ways = "batches of 8 sorted by length", "batches of 32 sorted by length", "one by one"
    assert [job.name for job in mixed] == [TEACHER, STUDENT, *(f"{ONNX} int8, {way}" for way in ways)]
    assert [len(job.arguments[3]) for job in mixed[2:]] == [5, 2, 40]
    assert [job.name for job in fixed] == [TEACHER, STUDENT, f"{ONNX} int8"]
    assert fixed[2].arguments[3:] == ([[*range(40)]], 1)


def test_student_files_hold_what_the_precision_says(tmp_path):
    """Loaded, they give the states of the student frozen in memory; the file in int8 has a byte per weight."""
    student, texts, sizes = Encoder(configs(small=True)[0]).eval(), [[5, 8, 9, 6], [5, 300, 6]], {}
    for precision in ("fp32", "bf16", "int8"):
        path = tmp_path / precision
        speed_rows.write_student(student, path, precision)
        sizes[precision] = path.stat().st_size
        read = speed_rows.read_student(path, precision, CPU)
        states = [speed_rows.hidden_states(e, texts, CPU, 64) for e in (read, speed_rows.frozen(student, precision))]
        assert all(torch.equal(one, other) for one, other in zip(*states))
    assert sizes["fp32"] > 1.9 * sizes["bf16"] and sizes["bf16"] > 1.7 * sizes["int8"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: AMD EPYC\nflags\t\t: fpu avx512_bf16x avx512_vnni avx\n" * 2, "AMD EPYC (avx512_vnni)"),
        ("CPU implementer\t: 0x41\nFeatures\t: asimd i8mm bf16\n", f"{platform.machine()} (bf16, i8mm)"),
        (None, f"{platform.machine()} (no bf16 or int8 instructions known)"),
    ],
)
def test_the_processor_is_named(tmp_path, text, expected):
    if text:
        (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == expected


def row(name: str, *seconds: float) -> Row:
    return Row(name, 0.0, list(seconds), 10**9, 0)


STRATEGIES = [f"{TRANSFORMERS}, {way}" for way in TRANSFORMERS_WAYS]
SECONDS = {TEACHER: (4.0, 6.0, 4.0), STUDENT: (2.0, 3.0, 1.0)}
SECONDS |= dict(zip(STRATEGIES, ((9.0, 9.0, 9.0), (8.0, 8.0, 8.0), (4.0, 5.0, 4.0))))
MIXED = {name: row(name, *seconds) for name, seconds in SECONDS.items()}


def test_ratios_are_medians_over_the_rounds():
    (verdict,) = speed.verdicts("mixed", {"fp32": MIXED})
    assert verdict["against"] == STRATEGIES[2]  # the fastest of the three
    assert verdict["ratio"] == 2.0 and verdict["reached"]  # of 2, 5 / 3, 4
    line = speed.verdict_line(verdict)
    assert "2.00 ×" in line and "minimum 1.70, goal 2.20" in line and line.endswith(": reached")
    rows = {"fp32": MIXED, "bf16": {STUDENT: row(STUDENT, 1.0, 1.0, 2.0)}}
    report = speed.part_table("mixed", [[5, 6]] * 50, rows, ["bf16"])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines()]
    assert "50 lines, 100 tokens, longest 2" in cells[0][0]
    assert cells[3] == [STUDENT, "fp32", "2.00 s", "50", "2.00", "2.00", "", "1.00", "1.00 GB"]
    assert cells[7] == [STUDENT, "bf16 (emulated)", "1.00 s", "100", "", "", "", "2.00", "1.00 GB"]


@pytest.mark.parametrize(("seconds", "reached"), [(1.0, True), (1.004, True), (1.006, False)])
def test_a_target_is_reached_as_printed(seconds, reached):
    rows = {STUDENT: row(STUDENT, seconds), TRANSFORMERS: row(TRANSFORMERS, 1.0), TEACHER: row(TEACHER, 1.9)}
    (verdict,) = speed.verdicts("latency", {"fp32": rows})
    assert verdict["reached"] is reached and verdict["against"] == TRANSFORMERS
    against_teacher, _ = speed.verdicts("fixed", {"fp32": rows})
    assert not against_teacher["reached"] and speed.verdict_line(against_teacher).endswith("not reached")


def test_targets_between_precisions_and_against_onnx_runtime():
    """The fastest of ONNX Runtime's ways counts; int8 is compared with the teacher in fp32, bf16 with the student."""
    fp32 = {TEACHER: row(TEACHER, 7.0), STUDENT: row(STUDENT, 3.0)}
    ways = {f"{ONNX} int8, {way}": row(f"{ONNX} int8, {way}", seconds) for way, seconds in (("a", 2.0), ("b", 1.2))}
    by_precision = {"fp32": fp32, "bf16": {STUDENT: row(STUDENT, 1.5)}, "int8": {STUDENT: row(STUDENT, 1.0), **ways}}
    found = {(verdict["precision"], verdict["against"]): verdict for verdict in speed.verdicts("mixed", by_precision)}
    assert {key: (verdict["ratio"], verdict["reached"]) for key, verdict in found.items()} == {
        ("bf16", "student in fp32"): (2.0, True),
        ("int8", f"{ONNX} int8, b"): (1.2, True),
        ("int8", "teacher in fp32"): (7.0, True),
    }
    assert [verdict["precision"] for verdict in speed.verdicts("mixed", by_precision, {"bf16"})] == ["int8", "int8"]
    assert "minimum 6.00, goal 8.00" in speed.verdict_line(found["int8", "teacher in fp32"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lines 0", "--lines"),
        ("--precision fp32 fp32", "--precision fp32 fp32 has duplicates"),
        ("--only mixed mixed", "--only mixed mixed has duplicates"),
        ("--small --student x", "--small cannot be combined"),
        ("--text x", "--tokenizer"),
        ("--small --longest 600", "at most 512"),
        ("--small --fixed 2 600", "at most 512"),
        ("--small --lines 100000", "has only"),
        ("--small --device warp", "not 'warp'"),
    ],
)
def test_errors_for_options(arguments, message):
    with pytest.raises(OptionError, match=message):
        speed.main(arguments.split())


def test_error_for_a_missing_text():
    with pytest.raises(DataError, match=r"There is no file nowhere\.txt"):
        speed.main(f"--small --text nowhere.txt --tokenizer {demo.FOLDER}".split())
