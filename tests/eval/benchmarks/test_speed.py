"""The speed of inference: that the command measures what it says."""

import json

import pytest
import torch

from data import DataError, OptionError, Tokenizer, demo
from eval.benchmarks import speed
from eval.benchmarks.harness import Row, configs
from eval.benchmarks.speed import STUDENT, TEACHER, THEIRS
from model import Encoder, EncoderConfig, ModelError, save_model
from model.checkpoints.export import export_huggingface
from model.training.device import Runtime
from tests.helpers import REAL_TEXT, REAL_TOKENIZER, needs, run_command

SIZES = ["--lines", "8", "--longest", "40", "--fixed", "2", "16", "--repetitions", "2", "--device", "cpu"]
CPU = Runtime(torch.device("cpu"))


def test_the_whole_command_on_tiny_models(tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "speed.json"
    result = run_command("-m eval", "speed", "--small", *SIZES, "--only", "mixed", "latency", "--out", out)
    assert result.returncode == 0, result.stderr
    for words in ("hidden states of 8 lines agree", "mixed lengths, 8 lines", "longest 40",
                  "latency, one sentence of", "sorted by length", "one by one"):  # fmt: skip
        assert words in result.stdout
    values = json.loads(out.read_text(encoding="utf-8"))
    assert {part: len(rows["fp32"]) for part, rows in values["rows"].items()} == {"mixed": 5, "latency": 3}
    assert all(len(row["seconds"]) == 2 for rows in values["rows"].values() for row in rows["fp32"])
    assert [verdict["part"] for verdict in values["verdicts"]] == ["mixed", "latency"]
    assert values["difference"] < speed.AGREE and values["options"]["fixed"] == [2, 16]


def test_of_files_in_another_precision_without_transformers(tmp_path, monkeypatch, capsys):
    """What is missing is said; models and text come from files; the other precision's predictions are compared."""
    monkeypatch.setattr(speed, "their_model", missing)
    monkeypatch.setattr(speed, "LOG", tmp_path / "LOG.md")
    student, teacher = configs(small=True)
    save_model(Encoder(student), tmp_path / "student.safetensors")
    export_huggingface(Encoder(teacher), tmp_path / "teacher", demo.FOLDER / "sentencepiece.bpe.model")
    text = tmp_path / "text.txt"
    text.write_text("Un.\n\n" + "Jeanne est née à Nice. Elle est infirmière.\n" * 20, encoding="utf-8")
    files = f"--teacher {tmp_path}/teacher --student {tmp_path}/student.safetensors --text {text}"
    rest = f"--tokenizer {demo.FOLDER} --only fixed --precision fp32 bf16 --log --out {tmp_path}/speed.json"
    speed.main([*files.split(), *rest.split(), *SIZES])
    output = capsys.readouterr().out
    assert "transformers is missing" in output and THEIRS not in output
    assert "predictions are those of fp32" in output and "× as fast as our teacher" in output
    assert "| bf16" in (tmp_path / "LOG.md").read_text(encoding="utf-8")
    values = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert values["equal predictions"]["bf16"] > 0.5 and str(text) in values["files"]


def missing(encoder):
    raise ImportError(name="transformers")


# ---- what is read ------------------------------------------------------------------------------------------------


def test_mixed_texts_are_as_many_and_as_long_as_asked():
    tokenizer = Tokenizer(demo.FOLDER)
    lines = speed.read_lines(speed.Options())
    texts = speed.mixed_texts(lines, tokenizer, 60, 300)
    lengths = sorted(map(len, texts))
    assert len(texts) == 60 and lengths[-1] == 300 and lengths[-2] < 120
    assert len(set(lengths)) > 20 and lengths[0] < 20
    assert texts[1] == tokenizer.encode(lines[len(lines) // 60])
    assert all(ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id for ids in texts)
    middle = 30 * len(lines) // 60
    assert texts[30][:-1] == tokenizer.encode(" ".join(lines[middle : middle + 40]))[:299]
    assert max(map(len, speed.mixed_texts(lines, tokenizer, 60, 16))) == 16


@needs(REAL_TOKENIZER, REAL_TEXT)
def test_real_lines():
    options = speed.Options(text=str(REAL_TEXT / "ud_french_sentences.txt"), tokenizer=str(REAL_TOKENIZER))
    texts = speed.texts_of(options, EncoderConfig.distilcamembert(), EncoderConfig.camembert())
    assert len(texts["mixed"]) == 256 and max(map(len, texts["mixed"])) == 512
    assert 25 < sum(map(len, texts["mixed"])) / 256 < 45
    assert abs(len(texts["latency"][0]) - 20) <= 2
    assert [len(ids) for ids in texts["fixed"]] == [128] * 32


def test_too_little_text():
    tokenizer = Tokenizer(demo.FOLDER)
    with pytest.raises(OptionError, match="only 3"):
        speed.mixed_texts(["Un.", "Deux.", "Trois."], tokenizer, 4, 10)
    with pytest.raises(OptionError, match="half of the text has only"):
        speed.mixed_texts(["Un.", "Deux.", "Trois."], tokenizer, 3, 100)


# ---- what the rows run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", range(3))
def test_ours_and_theirs_compute_the_same(way):
    """Each of the three ways, against ours in batches of few tokens, text by text."""
    pytest.importorskip("transformers")
    encoder = Encoder(configs(small=True)[0]).eval()
    texts = [torch.randint(7, 1005, (n,)).tolist() for n in [5, 40, 5, 17, *range(3, 70, 2), 120]]
    batches = [*speed.their_ways([len(ids) for ids in texts]).values()][way]
    assert sorted(i for batch in batches for i in batch) == [*range(len(texts))]
    ours = speed.our_states(encoder, texts, CPU, budget=64)
    theirs = speed.their_states(speed.their_model(encoder), texts, CPU, batches)
    for ids, one, other in zip(texts, ours, theirs, strict=True):
        assert one.shape == (len(ids), 64)
        assert (one - other).norm() < 1e-5 * other.norm()


def test_another_model_is_seen(monkeypatch):
    """Speeds of what computes something else are not compared."""
    pytest.importorskip("transformers")
    one, other = (Encoder(configs(small=True)[0]).eval() for _ in range(2))
    texts = [[5, 8, 9, 6], [5, 300, 6]]
    assert speed.agreement(one, texts, CPU, 100) < 1e-6
    their_model = speed.their_model
    monkeypatch.setattr(speed, "their_model", lambda encoder: their_model(other))
    with pytest.raises(ModelError, match="do not compute the same"):
        speed.agreement(one, texts, CPU, 100)


# ---- tables ------------------------------------------------------------------------------------------------------


def row(name: str, *seconds: float) -> Row:
    return Row(name, 0.0, list(seconds), 10**9, 0)


WAYS = [f"{THEIRS}, {way}" for way in speed.their_ways([1])]
MIXED = {
    made.name: made
    for made in (row(TEACHER, 4.0, 6.0, 4.0), row(STUDENT, 2.0, 3.0, 1.0), row(WAYS[0], 9.0, 9.0, 9.0),
                 row(WAYS[1], 8.0, 8.0, 8.0), row(WAYS[2], 4.0, 5.0, 4.0))
}  # fmt: skip


def test_the_ratios_are_medians_round_by_round():
    (verdict,) = speed.verdicts("mixed", "fp32", MIXED)
    assert verdict["against"] == WAYS[2]  # the best of the three
    assert verdict["ratio"] == 2.0 and verdict["reached"]  # of 2, 5 / 3, 4
    line = speed.verdict_line(verdict)
    assert "2.00 ×" in line and "at least 1.70, aim 2.20" in line and line.endswith(": reached")
    texts = [[5, 6]] * 50
    report = speed.part_table("mixed", texts, {"fp32": MIXED, "bf16": {STUDENT: row(STUDENT, 1.0, 1.0, 2.0)}}, ["bf16"])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines()]
    assert "50 lines, 100 tokens, longest 2" in cells[0][0]
    assert cells[3] == [STUDENT, "fp32", "2.00 s", "50", "2.00", "2.00", "1.00", "1.00 GB"]
    assert cells[7] == [STUDENT, "bf16 (imitated)", "1.00 s", "100", "", "", "2.00", "1.00 GB"]


@pytest.mark.parametrize(("seconds", "reached"), [(1.0, True), (1.004, True), (1.006, False)])
def test_a_bound_holds_as_it_is_shown(seconds, reached):
    rows = {STUDENT: row(STUDENT, seconds), THEIRS: row(THEIRS, 1.0), TEACHER: row(TEACHER, 1.9)}
    (verdict,) = speed.verdicts("latency", "fp32", rows)
    assert verdict["reached"] is reached and verdict["against"] == THEIRS
    against_teacher, _ = speed.verdicts("fixed", "fp32", rows)
    assert not against_teacher["reached"] and speed.verdict_line(against_teacher).endswith("not reached")


# ---- wrong options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--lines 0", "--lines"),
        ("--precision fp32 fp32", "once is enough"),
        ("--only mixed mixed", "once is enough"),
        ("--small --student x", "--small goes without"),
        ("--text x", "--tokenizer"),
        ("--small --longest 600", "at most 512"),
        ("--small --fixed 2 600", "at most 512"),
        ("--small --lines 100000", "has only"),
        ("--small --device warp", "--device warp"),
    ],
)
def test_wrong_options_are_sentences(arguments, sentence):
    with pytest.raises(OptionError, match=sentence):
        speed.main(arguments.split())


def test_a_missing_text_is_a_sentence():
    with pytest.raises(DataError, match=r"--text nowhere\.txt cannot be read"):
        speed.main(f"--small --text nowhere.txt --tokenizer {demo.FOLDER}".split())
