"""Equation (15): by hand, against transformers' pipeline, and as the command."""

import json
import math
import shlex

import pytest
import torch
import transformers

import eval.tasks.zero_shot as module
from eval.tasks.zero_shot import Options, ZeroShot, candidate_scores
from model import EncoderConfig, SequenceClassifier
from model.checkpoints.export import export_huggingface
from model.checkpoints.native import sha256
from tests.eval.tasks.shared import ON_CPU, TOKENIZER, check_error, pipe, save, succeeded, write
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(2, 32, 2, 32, 1005, max_positions=130)
RELATIONS = ("contradiction", "entailment", "neutral")
TEXTS = ["Le film est long.", "Elle habite à Brest, et elle aime la mer.", "", "Quel joli 🎬 !", "Oui."]
CANDIDATES = ["cinéma", "voyage", "la vie à Brest"]
TEMPLATE = "Ce texte parle de {}."


def nli_model(labels=RELATIONS):
    torch.manual_seed(1)
    return SequenceClassifier(CONFIG, len(labels), labels)


@pytest.fixture
def path(tmp_path):
    """A random NLI model with large logits."""
    return save(nli_model(), tmp_path / "nli.safetensors", noise=0.2)


def command(*arguments):
    return run_command("-m eval", "zero-shot", *arguments, *ON_CPU)


def options(path, **settings):
    return Options(model=str(path), labels=tuple(CANDIDATES), device="cpu", precision="fp32", **settings)


def test_by_hand():
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 2.0, -1.0]])
    e = math.exp
    assert candidate_scores(logits, 1).tolist() == pytest.approx([e(1) / (e(1) + e(2)), e(2) / (e(1) + e(2))])
    one, two = e(1) / (1 + e(1) + e(2)), e(2) / (e(5) + e(2) + e(-1))
    printed = [e(one) / (e(one) + e(two)), e(two) / (e(one) + e(two))]
    assert candidate_scores(logits, 1, printed=True).tolist() == pytest.approx(printed)


def test_the_printed_form_gives_nearly_equal_scores():
    """Of two candidates, none can have more than e / (e + 1)."""
    confident = torch.tensor([[-50.0, 50.0, -50.0], [50.0, -50.0, 0.0]])
    assert candidate_scores(confident, 1, printed=True)[0].item() == pytest.approx(math.e / (math.e + 1))
    assert candidate_scores(confident, 1)[0].item() == pytest.approx(1)


@pytest.mark.parametrize("labels", [RELATIONS, ("entailment", "neutral", "contradiction"), ("No", "Entailment")])
def test_scores_equal_transformers(tmp_path, labels, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    model = nli_model(labels)
    save(model, tmp_path / "nli.safetensors", noise=0.2)
    export_huggingface(model, tmp_path / "theirs", TOKENIZER)
    pipeline = transformers.pipeline("zero-shot-classification", model=str(tmp_path / "theirs"), device="cpu")
    texts = [text for text in TEXTS if text]  # the pipeline does not accept an empty one
    for ours in (tmp_path / "nli.safetensors", tmp_path / "theirs"):
        scores = ZeroShot(options(ours)).scores(texts)
        assert scores.shape == (len(texts), len(CANDIDATES)) and len(scores.argmax(dim=-1).unique()) > 1
        for row, theirs in zip(scores, pipeline(texts, CANDIDATES, hypothesis_template=TEMPLATE)):
            expected = dict(zip(theirs["labels"], theirs["scores"]))
            assert row.tolist() == pytest.approx([expected[name] for name in CANDIDATES], abs=1e-5)


def test_lines(path, tmp_path, monkeypatch):
    file = tmp_path / "texts"
    file.write_text("\n".join([*TEXTS, json.dumps({"text": "Non."}), '{"text": 1}', '{"text": ' + "[" * 10**5]))
    result = command(file, "--model", path, "--labels", *CANDIDATES)
    assert result.returncode == 1  # two lines are skipped
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["line"] for line in lines] == [1, 2, 3, 4, 5, 6]
    scores = ZeroShot(options(path)).scores([*TEXTS, "Non."])
    for line, row in zip(lines, scores):
        assert list(line["scores"]) == CANDIDATES and line["label"] == CANDIDATES[row.argmax()]
        assert list(line["scores"].values()) == pytest.approx(row.tolist(), abs=2e-6)
    assert "line 7 skipped" in result.stderr and "line 8 skipped: its JSON is nested" in result.stderr
    assert result.stderr.endswith("2 of 8 lines skipped.\n")
    for name in ((), ("-",)):
        pipe(monkeypatch, file.read_bytes())
        assert command(*name, "--model", path, "--labels", *CANDIDATES).stdout == result.stdout
    printed = command(file, "--model", path, "--labels", *CANDIDATES, "--printed")
    first = json.loads(printed.stdout.splitlines()[0])["scores"]
    (row,) = ZeroShot(options(path, printed=True)).scores(TEXTS[:1])
    assert list(first.values()) == pytest.approx(row.tolist(), abs=2e-6)
    assert max(first.values()) < math.e / (math.e + 2) and first != lines[0]["scores"]


def test_a_long_text_keeps_its_hypothesis(path, tmp_path):
    file = write(tmp_path / "texts", b"Le film est long. " * 5000)
    result = command(file, "--model", path, "--labels", *CANDIDATES)
    assert result.returncode == 0 and "longer than 128 tokens: truncated" in result.stderr
    assert len(set(json.loads(result.stdout)["scores"].values())) == 3


def test_evaluation(path, tmp_path):
    texts = TEXTS * 3
    guesses = [CANDIDATES[i] for i in ZeroShot(options(path)).scores(texts).argmax(dim=-1)]
    gold = [CANDIDATES[i % 3] for i in range(len(texts))]
    right = sum(a == b for a, b in zip(guesses, gold)) / len(gold)
    names = dict(zip(CANDIDATES, "210"))
    for given, called in (((), dict(zip(CANDIDATES, CANDIDATES))), (("--names", *"210"), names)):
        test = write(tmp_path / "t.jsonl", *({"text": t, "label": called[g]} for t, g in zip(texts, gold)))
        out = tmp_path / f"{len(given)}.json"
        arguments = ("--labels", *CANDIDATES, "--test", test, "--out", out, "--seed", 3)
        succeeded(command("--model", path, *arguments, *given))
        written = json.loads(out.read_text())
        assert written["figures"]["accuracy"]["value"] == pytest.approx(right)
        assert list(written["figures"]["by_label"]) == list(called.values())
        assert written["files"] == {str(test): sha256(test)} and written["seeds"] == [3]
        words = shlex.split(written["command"])
        assert words[:4] == ["python", "-m", "eval", "zero-shot"] and CANDIDATES[2] in words


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--labels", "a", "b"], "--model is missing"),
        (["--model", "MODEL"], "two different labels"),
        (["--model", "MODEL", "--labels", "a"], "two different labels"),
        (["--model", "MODEL", "--labels", "a", "a"], "two different labels"),
        (["--model", "MODEL", "--labels", "a", ""], "--labels is empty"),
        (["--model", "MODEL", "--labels", "a", "b\udcff"], "must be UTF-8"),
        (["--model", "MODEL", "--labels", "a", "b", "--template", "Oui."], "must contain {} exactly once"),
        (["--model", "MODEL", "--labels", "a", "b", "--template", "{} {}"], "must contain {} exactly once"),
        (["--model", "MODEL", "--labels", "a", "b", "--names", "0"], "as many as --labels"),
        (["--model", "MODEL", "--labels", "a", "b", "--names", "0", "1"], "only for --test"),
        (["--model", "MODEL", "--labels", "a", "b", "--out", "x.json"], "only for --test"),
        (["--model", "MODEL", "--labels", "a", "b", "--test", "T", "--names", "0", "0"], "same name twice"),
        (["--model", "MODEL", "--labels", "a", "b", "--test", "TEST"], "has the label '0', not one of a, b"),
        (["--model", "MODEL", "--labels", "0", "b", "--test", "TEST", "--out", "/proc/x/y"], "cannot be written"),
        (["--model", "MODEL", "--labels", "0", "b", "--test", "TEST", "--out", "tests"], "tests is a folder"),
        (["FILE", "--model", "MODEL", "--labels", "a", "b", "--test", "TEST"], "leave FILE out"),
        (["/none", "--model", "MODEL", "--labels", "a", "b"], "There is no file /none"),
        (["--model", "NO", "--labels", "a", "b"], "none of its labels is entailment or implication, but it has 0, 1"),
    ],
)
def test_error_messages(path, tmp_path, monkeypatch, arguments, sentence):
    test = write(tmp_path / "t.jsonl", {"text": "a", "label": "0"})
    there = {"MODEL": path, "TEST": test, "NO": save(nli_model(("0", "1")), tmp_path / "other.safetensors")}
    pipe(monkeypatch, b"a\n")
    check_error(command(*(there.get(argument, argument) for argument in arguments)), sentence)


def test_a_model_that_always_gives_one_label_is_said(tmp_path, monkeypatch, capsys, path):
    monkeypatch.setattr(ZeroShot, "scores", lambda self, texts: torch.tensor([[0.2, 0.8]] * len(texts)))
    given = ["--model", str(path), "--tokenizer", str(TOKENIZER.path), "--labels", "cinéma", "voyage", *ON_CPU]
    lines = write(tmp_path / "lines.txt", *[{"text": "Oui."}] * 12)
    assert module.main([str(lines), *given]) == 0
    assert "all 12 predictions on the input are the same: voyage." in capsys.readouterr().err
    labelled = write(tmp_path / "test.jsonl", *[{"text": text, "label": text} for text in ("cinéma", "voyage")] * 6)
    assert module.main(["--test", str(labelled), "--out", str(tmp_path / "out.json"), *given]) == 0
    assert "all 12 predictions on --test are the same: voyage." in capsys.readouterr().err
