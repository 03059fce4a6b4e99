"""Two or more models on the same data: figures of the single commands, paired intervals by hand, what differs."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from data import DataError, demo
from data.blocks import Blocks, validation_batches
from data.cli import OptionError
from data.corpus.shards import HELD_OUT
from data.demo.tasks import write_tasks
from data.masking import Masking
from data.tasks import TASKS
from eval.tasks.bootstrap import bootstrap, difference
from eval.tasks.compare import Compared, corpus_of, differences, is_clear, task_of, test_of
from eval.tasks.compared_runs import UNKNOWN, Run, cell, differing, open_run, stored_about
from model import EncoderConfig, MaskedLM, QuestionAnswerer, SequenceClassifier, TokenClassifier, load_model, save_model
from model.checkpoints.native import sha256
from tests import train_runs
from tests.eval.tasks.shared import ON_CPU, TOKENIZER, save, succeeded
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
test_of.__test__ = False
CONFIG = EncoderConfig(1, 16, 2, 16, 1005, max_positions=130)
ZERO = {"value": 0.0, "low": 0.0, "high": 0.0}
FIGURES = ("mlm_loss", "pseudo_perplexity", "accuracy", "agreement")


def compare(*arguments):
    return run_command("-m eval", "compare", *arguments, *ON_CPU)


def compared(out, *arguments):
    result = succeeded(compare(*arguments, "--out", out))
    return SimpleNamespace(**json.loads(Path(out).read_text()), stdout=result.stdout, stderr=result.stderr)


def values(figures):
    return {name: metric["value"] for name, metric in figures.items() if isinstance(metric, dict) and "value" in metric}


# ---- runs of train.py ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two finished runs that differ in the learning rate, and one that was stopped after its first step."""
    folder = train_runs.write_inputs(tmp_path_factory.mktemp("runs"))
    train_runs.run(folder, out=folder / "one")
    train_runs.run(folder, out=folder / "two", lr=5e-2)
    train_runs.run(folder, out=folder / "stopped", max_hours=train_runs.AT_ONCE)
    return folder


def test_masked_lms(place, tmp_path):
    """The values are those of each run's own validation, to the last digit; the second model's intervals are made by
    hand from its predictions on each block."""
    paths = [place / "one", place / "two", place / "one" / "student.safetensors"]
    teacher = ("--teacher", place / "teacher.safetensors", "--cache", place / "cache")
    found = compared(tmp_path / "out.json", *paths, *teacher)
    for run, path in zip(found.runs, (place / "one", place / "two", place / "one")):
        held_out = train_runs.provenance(path)["held_out"]
        assert values(run["figures"]) == {name: held_out[name] for name in FIGURES}
        assert run["weights"] == train_runs.weights(path) and run["kind"] == "MaskedLM"
        assert run["parameters"] == sum(each.numel() for each in load_model(path / "student.safetensors").parameters())
    assert found.measured_on["teacher_accuracy"] == held_out["teacher_accuracy"]
    assert found.differing == {"--lr": [1e-3, 5e-2, 1e-3]}
    assert found.runs[2]["difference_to_first"] == dict.fromkeys(FIGURES, ZERO)
    assert found.runs[0]["difference_to_first"] is None and "the same weights as 1" in found.stdout

    blocks = Blocks(Path(found.measured_on["folder"]), HELD_OUT, 32, TOKENIZER.bos_id)
    batches = validation_batches(blocks, Masking(TOKENIZER), 256)
    by_block = []  # of each model (blocks, 3): loss, hits, masked tokens
    for path in paths[:2]:
        model, rows = load_model(path / "student.safetensors"), []
        for batch in batches:
            with torch.no_grad():
                logits = model(batch.input_ids).double()
            for each, labels in zip(logits, batch.labels):
                each, labels = each[labels != -100], labels[labels != -100]
                loss = F.cross_entropy(each, labels, reduction="sum") if len(labels) else 0.0
                rows.append([float(loss), int((each.argmax(-1) == labels).sum()), len(labels)])
        by_block.append(numpy.array(rows))
    random, number = numpy.random.default_rng(0), len(by_block[0])
    assert found.measured_on["blocks"] == number and found.measured_on["masked_tokens"] == by_block[0][:, 2].sum()
    drawn = [random.integers(number, size=number) for _ in range(1000)]
    one, two = (numpy.array([rows[each].sum(axis=0) for each in drawn]) for rows in by_block)
    for column, name in enumerate(("mlm_loss", "accuracy")):
        own, first = two[:, column] / two[:, 2], one[:, column] / one[:, 2]
        figures = found.runs[1]["figures"][name], found.runs[1]["difference_to_first"][name]
        for metric, resampled in zip(figures, (own, own - first)):
            expected = numpy.percentile(resampled, [2.5, 97.5])
            assert [metric["low"], metric["high"]] == pytest.approx(expected, abs=1e-6)
    assert figures[1]["value"] == figures[0]["value"] - found.runs[0]["figures"]["accuracy"]["value"]


def test_an_unfinished_run_is_compared_at_its_newest_complete_checkpoint(place, tmp_path):
    (place / "stopped" / "checkpoints" / "step-000000009").mkdir(exist_ok=True)  # without its files
    found = compared(tmp_path / "out.json", place / "stopped", place / "one", "--cache", place / "cache")
    assert "stopped is not finished: its checkpoint step-000000001 is compared." in found.stderr
    assert found.runs[0]["facts"]["step"] == 1 and found.runs[0]["options"] == found.runs[1]["options"] | {
        "out": str(place / "stopped"),
        "max_hours": train_runs.AT_ONCE,
    }
    assert found.differing == {"--max-hours": [train_runs.AT_ONCE, None], "step": [1, 4]}
    assert "| --max-hours |" in found.stdout
    facts = [run["facts"] for run in found.runs]
    assert facts[0]["hash of teacher"] == facts[1]["hash of teacher"] and len(facts[0]["hash of corpus"]) == 64
    assert "another corpus" not in found.stderr


def test_a_damaged_student_is_compared_at_its_checkpoint(place, tmp_path, capsys):
    run = shutil.copytree(place / "stopped", tmp_path / "run")
    (run / "student.safetensors").touch()
    assert open_run(str(run)).weights == open_run(str(place / "stopped")).weights
    assert "A checkpoint of the run is taken instead." in capsys.readouterr().err


def test_an_extended_run_differs_from_one_with_the_same_options(tmp_path):
    facts = []
    for schedules in ([8], [4, 8]):
        save_model(MaskedLM(CONFIG), tmp_path / "model", {"schedules": schedules})
        facts.append(SimpleNamespace(options={}, facts=stored_about(tmp_path / "model")[2]))
    assert differing(facts) == {"schedules": [[8], [4, 8]]}


def test_a_corpus_that_is_given(place, data, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(train_runs.TEXTS[:150]), encoding="utf-8")
    given = ("--corpus", tmp_path / "text.txt", "--cache", tmp_path, "--block-size", 16, "--blocks", 5)
    found = compared(tmp_path / "out.json", place / "one", data / "masked LM-0.safetensors", *given)
    assert found.measured_on["blocks"] == 5 and found.measured_on["block_size"] == 16
    assert "one was trained on another corpus: it may have seen the text" in found.stderr
    assert found.differing == {} and "No stored option differs." in found.stdout
    assert found.stdout.count("its options are not stored") == 1


# ---- fine-tuned models -----------------------------------------------------------------------------------------

TYPES = ("O", "B-LOC", "B-MISC", "B-ORG", "B-PER", "I-LOC", "I-MISC", "I-ORG", "I-PER")
MODELS = {
    "sentiment": lambda: SequenceClassifier(CONFIG, 2, ("0", "1")),
    "nli": lambda: SequenceClassifier(CONFIG, 3, ("contradiction", "entailment", "neutral")),
    "ner": lambda: TokenClassifier(CONFIG, len(TYPES), TYPES),
    "qa": lambda: QuestionAnswerer(CONFIG),
    "regression": lambda: SequenceClassifier(CONFIG, 1, ("value",), "regression"),
    "masked LM": lambda: MaskedLM(CONFIG),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Examples, and two models of every kind in MODELS: KIND-0.safetensors and KIND-1.safetensors."""
    folder = tmp_path_factory.mktemp("data")
    write_tasks(folder, {"sentiment": 60, "ner": 40, "nli": 40, "qa": 20})
    for kind, make in MODELS.items():
        for seed in (0, 1):
            torch.manual_seed(seed)
            save(make(), folder / f"{kind}-{seed}.safetensors", 0.3)
    return folder


def test_file(data, task):
    return next((data / task).glob("test.*"))


test_file.__test__ = False


@pytest.mark.parametrize("task", TASKS)
def test_fine_tuned_models_have_the_figures_of_the_single_command(data, tmp_path, task):
    paths = [data / f"{task}-{seed}.safetensors" for seed in (0, 1)]
    test = ("--test", test_file(data, task))
    given = ("--task", task) if task in ("sentiment", "nli") else ()
    found = compared(tmp_path / "out.json", *paths, paths[0], *test, *given)
    for run, path in zip(found.runs, (*paths, paths[0])):
        single = ("--model", path, *test, "--out", tmp_path / "single.json", *ON_CPU)
        succeeded(run_command("-m eval", task, *single))
        assert run["figures"] == json.loads((tmp_path / "single.json").read_text())["figures"]
    assert all(metric == ZERO for metric in found.runs[2]["difference_to_first"].values())
    one, two = (values(run["figures"]) for run in found.runs[:2])
    assert values(found.runs[1]["difference_to_first"]) == {name: two[name] - one[name] for name in one}
    assert found.files == {str(test[1]): sha256(test[1])}


def test_the_interval_of_a_difference_is_that_of_the_paired_differences_and_scipys():
    """Of a mean, the paired difference is the mean of the differences: its interval is known to bootstrap and scipy.
    The allowed deviation is that of test_bootstrap."""
    random = numpy.random.default_rng(5)
    one = random.normal(size=300)
    two = one + 0.1 + 0.05 * random.normal(size=300)
    reports = [bootstrap(sample, lambda sums: {"mean": sums / 300}, 3, 20_000)["mean"] for sample in (one, two)]
    found = difference(reports[1], reports[0])
    paired = bootstrap(two - one, lambda sums: {"mean": sums / 300}, 3, 20_000)["mean"]
    assert found == pytest.approx(paired, abs=1e-12)
    options = dict(n_resamples=20_000, method="percentile", paired=True, rng=numpy.random.default_rng(2))
    theirs = scipy.stats.bootstrap((two, one), lambda a, b, axis: (a - b).mean(axis), **options).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(theirs, abs=4 * 0.038 * (two - one).std() / 300**0.5)
    assert is_clear(found) and reports[1]["low"] < reports[0]["high"]  # clear, although the two intervals overlap
    assert not is_clear(difference(reports[0], reports[0]))


def test_a_single_example_has_no_interval_and_no_clear_difference():
    one, two = (bootstrap(numpy.array([x]), lambda sums: {"mean": sums}, 0)["mean"] for x in (1.0, 3.0))
    found = difference(two, one)
    assert found == {"value": 2.0, "low": None, "high": None} and not is_clear(found)


def test_word_pieces_of_different_tokenizers_are_not_compared():
    metrics = [bootstrap(numpy.arange(4.0), lambda sums: {"subword_f1": sums / 9, "entity_f1": sums / 9}, 0)] * 2
    assert [set(each) for each in differences(Compared(metrics, ["a", "b"], {}, (), ""))] == [{"entity_f1"}]
    assert [set(each) for each in differences(Compared(metrics, ["a", "a"], {}, (), ""))] == [set(metrics[0])]


# ---- what is stored --------------------------------------------------------------------------------------------


def run_of(options=None, **settings):
    empty = dict(name="run", path="", kind=MaskedLM, problem_type=None, parameters=0, weights="", task=None, facts={})
    return Run(**empty | dict(options=options or {}) | settings)


def test_what_differs():
    one = run_of({"lr": 0.1, "out": "a", "steps": 5, "old": 1}, facts={"hash of corpus": "abc"})
    two = run_of({"lr": 0.2, "out": "b", "steps": 5}, facts={"hash of corpus": "abd"})
    assert differing([one, two, run_of()]) == {
        "--lr": [0.1, 0.2, UNKNOWN],
        "hash of corpus": ["abc", "abd", UNKNOWN],
    }
    assert differing([one, one]) == {}


@pytest.mark.parametrize(
    "name, value, shown",
    [
        ("--lr", 5e-4, "0.0005"),
        ("--layers", ["0", "2"], "0 2"),
        ("--student", None, "none"),
        ("--plan", True, "yes"),
        ("--corpus", "/x" * 40 + "/end", "…" + ("/x" * 40 + "/end")[-35:]),
        ("hash of corpus", "0123456789abcdef", "0123456789ab"),
        ("--out", "\x1b[2J", "?[2J"),
        ("--odd", {"a": [1]}, "{'a': [1]}"),
    ],
)
def test_a_value_on_screen(name, value, shown):
    assert cell(name, value) == shown


def test_a_corpus_or_test_files_that_are_gone_or_are_none_are_left_to_the_next_run(tmp_path):
    (tmp_path / "here").touch()
    here, gone = [str(tmp_path / "here")], [str(tmp_path / "gone")]
    bad = [gone, [], "here", None, [1], {}, ["/dev/zero"], ["a\0b"], ["x" * 5000], ["-"]]
    runs = [*(run_of({"corpus": each, "test": each}) for each in bad), run_of({"corpus": here, "test": here})]
    assert corpus_of(runs) == (tuple(here), {}) and test_of(runs, ()) == tuple(here)
    assert test_of(runs, ("given",)) == ("given",)
    sizes = [(64, {"block_size": 64, "within_documents": None}), (True, {}), (2, {}), ("64", {}), (10**9, {})]
    for size, stored in sizes:
        assert corpus_of([run_of({"corpus": ["demo"], "block_size": size})]) == (("demo",), stored)
    for of in (corpus_of, lambda runs: test_of(runs, ())):
        with pytest.raises(DataError, match="still there. Name"):
            of(runs[:-1])


@pytest.mark.parametrize("content", ["", "[]", '{"options": []}', "[" * 10**5, '{"inputs": 3, "options": {"a": NaN}}'])
def test_a_damaged_run_json_costs_only_what_it_says(place, tmp_path, content, capsys):
    out = tmp_path / "out"
    out.mkdir()
    save_model(load_model(place / "one" / "student.safetensors"), out / "student.safetensors", tokenizer=TOKENIZER)
    (out / "run.json").write_text(content)
    stored, options, facts = stored_about(out)
    assert stored == {} and set(options) <= {"a"} and facts == {}
    is_json = content.startswith("{")
    assert is_json != ("are unknown" in capsys.readouterr().err)


# ---- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nli-0"], "Name two or more runs"),
        (["nli-0", "qa-0"], "nli-0.safetensors is a SequenceClassifier, "),
        (["masked LM-0", "nli-0"], "SequenceClassifier: models of one kind can be compared"),
        (["nli-0", "regression-0"], "is a single_label_classification model, "),
        (["nli-0", "nli-1"], "None of the models says what task it is for. Name it with --task"),
        (["nli-0", "nli-1", "--task", "nli"], "Name labelled examples with --test"),
        (["ner-0", "ner-1", "--task", "nli"], "--task nli: the models are for ner"),
        (["ner-0", "ner-1", "--corpus", "demo"], "--corpus is for masked LMs"),
        (["qa-0", "qa-1", "--as-text", "--test", "x"], "--as-text is only for ner"),
        (["masked LM-0", "masked LM-1"], "None of the runs names a corpus that is still there"),
        (["masked LM-0", "masked LM-1", "--test", "x"], "--test is for fine-tuned models"),
        (["masked LM-0", "masked LM-1", "--corpus", "demo", "--block-size", "200"], "exceeds the 128 tokens"),
        (["nli-0", "gone.safetensors"], "There is no file"),
        (["nli-0", "EMPTY"], "contains none of"),
        (["nli-0", "TABLE2"], "is a folder of table2. Name the models of one task in it"),
        (["masked LM-0", "OTHER", "--corpus", "demo"], "have different tokenizers"),
    ],
)
def test_error_messages(data, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table2").mkdir()
    (tmp_path / "table2" / "table2.json").touch()
    other = SimpleNamespace(content=(demo.FOLDER / "sentencepiece.bpe.model").read_bytes() + b"\x12\x00")
    other.sha256 = lambda: hashlib.sha256(other.content).hexdigest()
    save_model(MODELS["masked LM"](), tmp_path / "other.safetensors", tokenizer=other)
    places = {"EMPTY": tmp_path / "empty", "TABLE2": tmp_path / "table2", "OTHER": tmp_path / "other.safetensors"}
    places |= {f"{kind}-{seed}": data / f"{kind}-{seed}.safetensors" for kind in MODELS for seed in (0, 1)}
    words = [places.get(word, word) for word in arguments]
    result = compare(*words, "--out", tmp_path / "out.json", "--cache", tmp_path / "cache")
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("python -m eval: "), result.stderr
    assert sentence in result.stderr and not (tmp_path / "out.json").exists()


def test_models_fine_tuned_on_different_tasks(data):
    nli, sentiment = (run_of(kind=SequenceClassifier, task=task, name=task) for task in ("nli", "sentiment"))
    with pytest.raises(OptionError, match="nli is for nli, sentiment is for sentiment"):
        task_of([nli, sentiment], None)
    assert task_of([nli, run_of(kind=SequenceClassifier)], None) == "nli"
    assert task_of([run_of(kind=SequenceClassifier, task="other")], "sentiment") == "sentiment"
