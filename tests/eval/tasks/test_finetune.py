"""Fine-tuning end to end on toy tasks: it learns, is deterministic, writes its files, and reports errors."""

import json
import random
import threading

import pytest
import torch

import eval.tasks.finetune as module
from data import DataError, Tokenizer
from data.locks import locked
from data.tasks import read_task
from eval.tasks.batching import TaskSettings
from eval.tasks.evaluate import TASK_CLASSES, predict
from eval.tasks.finetune import Options, mean_and_deviation, plan_batches
from model import EncoderConfig, MaskedLM, SequenceClassifier, TokenClassifier, load_model, save_model
from model.checkpoints.load import load_checkpoint
from model.checkpoints.native import sha256
from tests.eval.tasks.shared import (
    ON_CPU,
    RUNTIME,
    TOKENIZER,
    check_error,
    ignore,
    run_with_closed_output,
    save,
    succeeded,
    write,
)
from tests.helpers import run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(1, 32, 2, 32, 1005, max_positions=66, dropout=0.0)
FILL = ["le", "film", "est", "une", "ville", "de", "la", "dans", "et", "habite"]
TOWNS, PEOPLE = ["Brest", "Nantes", "Lille"], ["Jean", "Marie", "Paul"]
RELATIONS = {"entailment": "oui", "neutral": "peut", "contradiction": "non"}
SETTINGS = (*ON_CPU, "--lr", "1e-2", "--step-tokens", "256", "--warmup", "0.1")


def examples_of(task: str, seed: int, count: int = 60) -> list[dict]:
    """Examples whose label follows from a single word."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = rng.choices(FILL, k=rng.randrange(2, 7))
        place = rng.randrange(len(words) + 1)
        if task == "sentiment":
            words.insert(place, ("beau", "triste")[number % 2])
            found.append({"text": " ".join(words), "label": ("pos", "neg")[number % 2]})
        elif task == "nli":
            label = list(RELATIONS)[number % 3]
            found.append({"premise": " ".join(words), "hypothesis": RELATIONS[label], "label": label})
        elif task == "ner":
            tags = ["O"] * len(words)
            words.insert(place, rng.choice(TOWNS if number % 2 else PEOPLE))
            tags.insert(place, ("B-PER", "B-LOC")[number % 2])
            found.append({"words": words, "tags": tags})
        else:
            town = rng.choice(TOWNS)
            words.insert(place, town)
            context = " ".join(words)
            answers = [{"text": town, "answer_start": context.index(town)}]
            found.append({"id": str(number), "context": context, "question": "Où ?", "answers": answers})
    return found


def command(*arguments):
    return run_command("-m eval", "finetune", *arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an untrained masked LM, its tokenizer, and for each task a file for training and one for dev."""
    folder = tmp_path_factory.mktemp("toy")
    torch.manual_seed(0)
    save(MaskedLM(CONFIG), folder / "lm.safetensors")
    for task in TASK_CLASSES:
        write(folder / f"{task}.train", *examples_of(task, 0))
        write(folder / f"{task}.dev", *examples_of(task, 1, 20))
    return folder


def inputs(place, task, out):
    files = ("--train", place / f"{task}.train", "--dev", place / f"{task}.dev", "--out", out)
    return task, "--model", place / "lm.safetensors", *files, *SETTINGS


@pytest.fixture(scope="module")
def tuned(place):
    """Task -> the folder of its result, which is made once."""
    made = {}

    def of(task):
        if task not in made:
            made[task] = place / f"out-{task}"
            arguments = ("--epochs", 40 if task == "qa" else 20, "--test", place / f"{task}.dev")
            result = succeeded(command(*inputs(place, task, made[task]), *arguments))
            assert f"Written: {made[task]}" in result.stdout
        return made[task]

    return of


def results(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("task", TASK_CLASSES)
def test_a_toy_task_is_learnt_and_evaluated(place, tuned, tmp_path, task):
    found = results(tuned(task))
    (run,) = found["runs"]
    assert run["dev"][TASK_CLASSES[task].headline]["value"] == 1
    assert run["dev"] == run["test"] and run["seed"] == 0
    model = load_model(tuned(task) / "model.safetensors")
    assert type(model) is TASK_CLASSES[task].model
    settings = ("--test", place / f"{task}.dev", "--seed", 0, "--out", tmp_path / "r.json", *ON_CPU)
    succeeded(run_command("-m eval", task, "--model", tuned(task), *settings))
    assert json.loads((tmp_path / "r.json").read_text())["figures"] == run["test"]


def test_the_files_of_a_run(place, tuned):
    folder = tuned("sentiment")
    found = results(folder)
    assert found["task"] == "sentiment" and found["seeds"] == [0] and found["teacher"] is None
    assert found["command"].startswith("python -m eval finetune sentiment --model ")
    assert found["versions"].keys() >= {"python", "torch"}
    train, dev = place / "sentiment.train", place / "sentiment.dev"
    assert found["files"] == {str(train): sha256(train), str(dev): sha256(dev)}
    assert found["options"]["lr"] == 0.01 and found["options"]["epochs"] == 20
    assert found["over_seeds"]["test"]["accuracy"] == {"mean": 1.0, "deviation": None}
    assert load_model(folder / "model.safetensors").labels == ("neg", "pos")
    assert Tokenizer(folder).sha256() == TOKENIZER.sha256()
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "results.json"]


def test_labels_are_named_by_the_label_map(place, tmp_path):
    """Numbers in NLI, and labels that begin with a dash."""
    values = [{**value, "label": list(RELATIONS).index(value["label"]) - 1} for value in examples_of("nli", 0)]
    files = [write(tmp_path / f"nli.{part}", *values) for part in ("train", "dev")]
    arguments = ("nli", "--model", place / "lm.safetensors", "--train", files[0], "--dev", files[1], *SETTINGS)
    out = tmp_path / "out"
    refused = command(*arguments, "--out", out)
    assert refused.returncode == 2 and "label is -1, a number" in refused.stderr and not out.exists()
    label_map = ("--label-map", "-1=implication", "0=neutre", "1=neutre")
    result = succeeded(command(*arguments, "--out", out, "--epochs", 1, *label_map))
    assert "labels implication, neutre;" in result.stdout
    assert load_model(out / "model.safetensors").labels == ("implication", "neutre")
    assert results(out)["options"]["label_map"] == list(label_map[1:])
    several = command(*arguments, "--out", out, "--label-map", "-1=a,b")
    assert several.returncode == 2 and "gives the label '-1' several names, a, b" in several.stderr
    evaluated = ("--test", files[1], "--out", tmp_path / "r.json", *ON_CPU, *label_map)
    succeeded(run_command("-m eval", "nli", "--model", out, *evaluated))  # the same map
    figures = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert figures == results(out)["runs"][0]["dev"] and figures["count"] == 60


def test_nothing_is_lost_if_nobody_reads_the_output(place, tmp_path):
    """The run goes on to its end, as if its output went to a file."""
    arguments = (*inputs(place, "sentiment", tmp_path / "out"), "--epochs", 2, "--seeds", 0, 1, "--log-every", 1)
    assert run_with_closed_output("finetune", *arguments) == 0
    assert [run["seed"] for run in results(tmp_path / "out")["runs"]] == [0, 1]
    assert load_model(tmp_path / "out" / "model.safetensors").labels == ("neg", "pos")


def test_several_seeds_and_bitwise_determinism(place, tmp_path):
    seeds_of = {"both": (3, 4), "first": (3,), "second": (4,)}
    for name, seeds in seeds_of.items():
        arguments = ("--seeds", *seeds, "--steps", 6, "--dropout", 0.2)
        succeeded(command(*inputs(place, "sentiment", tmp_path / name), *arguments))
    both, first, second = (results(tmp_path / name) for name in seeds_of)
    assert [run["seed"] for run in both["runs"]] == both["seeds"] == [3, 4]
    assert both["runs"] == first["runs"] + second["runs"]
    values = [run["dev"]["accuracy"]["value"] for run in both["runs"]]
    figure = both["over_seeds"]["dev"]["accuracy"]
    assert figure["mean"] == pytest.approx(sum(values) / 2)
    assert figure["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    best = "second" if values[1] > values[0] else "first"
    models = {name: load_model(tmp_path / name / "model.safetensors").state_dict() for name in seeds_of}
    assert all(torch.equal(tensor, models["both"][key]) for key, tensor in models[best].items())
    assert any(not torch.equal(tensor, models["first"][key]) for key, tensor in models["second"].items())


def test_mean_and_sample_deviation():
    runs = [{"dev": {"f1": {"value": value}, "count": 3, "by_type": {"LOC": {}}}} for value in (0.5, 0.7, 0.9)]
    assert mean_and_deviation(runs, "dev") == {"f1": {"mean": pytest.approx(0.7), "deviation": pytest.approx(0.2)}}


def test_the_best_epoch_is_kept(place, tmp_path, monkeypatch):
    """With a metric that is highest after the second epoch, the model is that of the second epoch."""
    seen, real = [], TASK_CLASSES["sentiment"].metrics
    values = iter((0.2, 0.8, 0.8, 0.1))

    def metrics(self, predictions, examples, seed):
        metrics = real(self, predictions, examples, seed)
        seen.append(torch.stack([prediction.scores for prediction in predictions]))
        return metrics | {"accuracy": {"value": next(values), "low": 0, "high": 1}}

    monkeypatch.setattr(TASK_CLASSES["sentiment"], "metrics", metrics)
    source = load_model(place / "lm.safetensors")
    arguments = dict(model="m", train=("t",), dev=("d",), out="o", lr=1e-2, step_tokens=256, epochs=4, precision="fp32")
    task = TASK_CLASSES["sentiment"](TaskSettings(TOKENIZER, 64), ("neg", "pos"))
    data = {part: read_task("sentiment", [place / f"sentiment.{part}"], ignore) for part in ("train", "dev")}
    model = module.make_model(source, task, None)
    best = module.train_one_seed(model, None, task, data, RUNTIME, Options(**arguments), 0)
    assert best["epoch"] == 2 and best["dev"]["accuracy"]["value"] == 0.8
    scores = torch.stack([prediction.scores for prediction in predict(model.eval(), task, data["dev"], RUNTIME, 4096)])
    assert torch.equal(scores, seen[1]) and not torch.equal(scores, seen[3])


def outputs_of(folder, place, task):
    model = load_checkpoint(folder, ignore)
    reader = TASK_CLASSES[task](TaskSettings(TOKENIZER, 64), getattr(model, "labels", ()))
    return predict(model, reader, read_task(task, [place / f"{task}.dev"], ignore), RUNTIME, 4096)


@pytest.mark.parametrize("task", ["sentiment", "ner", "qa"])
def test_the_teachers_probabilities_are_learnt_from_wrong_labels(place, tuned, tmp_path, task):
    """With --soft-weight 1 the labels have no weight."""
    values = examples_of(task, 0)
    for value in values:
        if task == "sentiment":
            value["label"] = {"pos": "neg", "neg": "pos"}[value["label"]]
        elif task == "ner":
            value["tags"] = [{"O": "B-LOC"}.get(tag, "O") for tag in value["tags"]]
        else:
            value["answers"] = [{"text": value["context"].split()[0], "answer_start": 0}]
    train = write(tmp_path / "wrong.train", *values)
    copies = [train] * (30 if task == "sentiment" else 60)  # in one epoch, so that the last step's model is kept
    settings = ("--teacher", tuned(task), "--soft-weight", 1, "--temperature", 1, "--epochs", 1)
    succeeded(command(*inputs(place, task, tmp_path / "out"), "--train", *copies, *settings))
    found = results(tmp_path / "out")
    assert found["runs"][0]["dev"][TASK_CLASSES[task].headline]["value"] == 1
    assert found["teacher"] == results(tmp_path / "out")["teacher"] is not None
    ours, theirs = outputs_of(tmp_path / "out", place, task), outputs_of(tuned(task), place, task)
    differences = []
    for one, two in zip(ours, theirs, strict=True):
        if task == "qa":
            assert one.answer == two.answer
            differences.append(abs(one.score - two.score))
        else:
            differences.append((one.scores - two.scores).abs().mean().item())
    assert sum(differences) / len(differences) < 0.05


def test_tags_of_other_schemes(place, tmp_path):
    """A teacher without prefixes, data in BIOES: the student has the teacher's labels and learns its types."""
    torch.manual_seed(0)
    save_model(TokenClassifier(CONFIG, 3, ("O", "LOC", "PER")), tmp_path / "teacher.safetensors")
    values = [{**value, "tags": [tag.replace("B-", "S-") for tag in value["tags"]]} for value in examples_of("ner", 0)]
    files = ("--train", write(tmp_path / "bioes", *values), "--teacher", tmp_path / "teacher.safetensors")
    succeeded(command(*inputs(place, "ner", tmp_path / "out"), *files, "--soft-weight", 0, "--epochs", 30))
    assert load_model(tmp_path / "out" / "model.safetensors").labels == ("O", "LOC", "PER")
    assert results(tmp_path / "out")["runs"][0]["dev"]["entity_f1"]["value"] > 0.9
    succeeded(command(*inputs(place, "ner", tmp_path / "two"), *files[:2], "--steps", 1))
    labels = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    assert load_model(tmp_path / "two" / "model.safetensors").labels == labels
    save_model(TokenClassifier(CONFIG, 2, ("O", "LOC")), tmp_path / "teacher.safetensors")
    result = command(*inputs(place, "ner", tmp_path / "three"), *files)
    check_error(result, "label 'PER'", "its labels are LOC", "teacher")


def test_the_labels_are_the_union_of_all_files(place, tmp_path):
    other = write(tmp_path / "other", {"text": "Oui.", "label": "autre"})
    succeeded(command(*inputs(place, "sentiment", tmp_path / "out"), "--dev", other, "--steps", 1))
    assert load_model(tmp_path / "out" / "model.safetensors").labels == ("autre", "neg", "pos")


def test_the_labels_and_their_order_are_the_teachers(place, tmp_path):
    torch.manual_seed(0)
    save_model(SequenceClassifier(CONFIG, 3, ("pos", "autre", "neg")), tmp_path / "teacher.safetensors")
    teacher = ("--teacher", tmp_path / "teacher.safetensors")
    succeeded(command(*inputs(place, "sentiment", tmp_path / "out"), *teacher, "--steps", 1))
    assert load_model(tmp_path / "out" / "model.safetensors").labels == ("pos", "autre", "neg")


def test_another_tokenizer_of_the_same_size_is_refused(place, tmp_path):
    """Inside the teacher, or, when a run goes on, named instead of the one that it began with."""
    other = tmp_path / "other.model"
    other.write_bytes(TOKENIZER.content.replace("▁film".encode(), "▁filn".encode()))
    teacher = tmp_path / "teacher.safetensors"
    save_model(SequenceClassifier(CONFIG, 2, ("neg", "pos")), teacher, tokenizer=Tokenizer(other))
    result = command(*inputs(place, "sentiment", tmp_path / "out"), "--teacher", teacher, "--steps", 1)
    check_error(result, f"{place / 'lm.safetensors'} and {teacher} have different tokenizers")
    save_model(MaskedLM(CONFIG), tmp_path / "bare.safetensors")
    arguments = *inputs(place, "sentiment", tmp_path / "out"), "--model", tmp_path / "bare.safetensors", "--steps", 1
    succeeded(command(*arguments, "--tokenizer", place / "lm.safetensors"))
    check_error(command(*arguments, "--tokenizer", other), "belongs to a run with other inputs (model, tokenizer, data")


def options(**values):
    return Options(**dict(model="m", train=("t",), dev=("d",), out="o") | values)


def test_batches_of_epochs_and_of_steps():
    lengths = [10] * 40
    epochs = plan_batches(lengths, options(step_tokens=100, epochs=3), random.Random(0))
    assert [len(batches) for batches in epochs] == [4, 4, 4]
    assert epochs[0] != epochs[1]
    for steps, expected in ((9, [4, 4, 1]), (8, [4, 4]), (1, [1])):
        epochs = plan_batches(lengths, options(step_tokens=100, steps=steps), random.Random(0))
        assert [len(batches) for batches in epochs] == expected


def test_no_features_do_not_loop_for_ever(monkeypatch):
    monkeypatch.setattr(module, "budget_batches", lambda *arguments: pytest.fail("it would never end"))
    with pytest.raises(DataError, match="--train has nothing to train on"):
        plan_batches([], options(steps=5), random.Random(0))


def test_nothing_to_train_on(place, tmp_path):
    values = examples_of("qa", 0, 3)
    for value in values:
        value["answers"][0] = {"text": "ailleurs", "answer_start": 0}
    train = write(tmp_path / "t", *values)
    result = command(*inputs(place, "qa", tmp_path / "out"), "--train", train)
    assert result.returncode == 2
    assert "--steps must be" not in result.stderr  # it was not given
    assert str(train) in result.stderr or "--train" in result.stderr


WRONG = {
    "no task": ([], "The task is missing"),
    "an unknown task": (["parsing"], "There is no task parsing. The tasks are"),
    "a misspelt task": (["sentimant"], "There is no task sentimant. Did you mean sentiment?"),
    "no model": (["sentiment", "--train", "{train}", "--dev", "{dev}", "--out", "{out}"], "--model is missing"),
    "no out": (["sentiment", "--model", "{model}", "--train", "{train}", "--dev", "{dev}"], "--out is missing"),
    "no dev": (["sentiment", "--model", "{model}", "--train", "{train}", "--out", "{out}"], "--dev is missing"),
    "a missing file": (["{all}", "--train", "{out}/none"], "There is no file"),
    "a missing model": (["{all}", "--model", "{out}/none"], "none"),
    "a text instead of a model": (["{all}", "--model", "{train}"], "sentiment.train"),
    "another task's file": (["{all}", "--dev", "{place}/qa.dev"], "has no"),
    "a teacher of another task": (["{all}", "--teacher", "{model}"], "MaskedLM"),
    "a teacher without the labels": (["{all}", "--teacher", "{teacher}"], "label 'neg', which the model does not have"),
    "a missing teacher": (["{all}", "--teacher", "{out}/none"], "none"),
    "the same seed twice": (["{all}", "--seeds", "1", "1"], "--seeds has the same seed twice"),
    "too long": (["{all}", "--max-length", "65"], "at most 64 tokens"),
    "a weight above 1": (["{all}", "--soft-weight", "1.5"], "--soft-weight must be"),
    "another tokenizer": (["{all}", "--tokenizer", "{place}/sentiment.dev"], "not a SentencePiece model"),
    "a temperature of 0": (["{all}", "--temperature", "0"], "--temperature must be"),
}


@pytest.mark.parametrize("name", WRONG)
def test_error_messages(place, tmp_path, name):
    torch.manual_seed(0)
    save_model(SequenceClassifier(CONFIG, 2, ("pos", "x")), tmp_path / "teacher.safetensors")
    names = dict(place=place, model=place / "lm.safetensors", teacher=tmp_path / "teacher.safetensors")
    names |= dict(train=place / "sentiment.train", dev=place / "sentiment.dev", out=tmp_path / "out")
    given, words = WRONG[name]
    arguments = [argument.format(**names) for argument in given if argument != "{all}"]
    if "{all}" in given:
        arguments = [*inputs(place, "sentiment", tmp_path / "out"), "--steps", 1, *arguments]
    result = command(*arguments)
    assert result.returncode == 2, result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_loss_that_is_not_finite(place, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.tasks.finetune.check_bounds", lambda options: None)
    settings = ("--lr", "1e30", "--clip", "1e30", "--steps", 20, "--log-every", 1, "--warmup", 0)
    result = command(*inputs(place, "sentiment", tmp_path / "out"), *settings)
    assert result.returncode not in (0, None)
    assert "is not finite" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_result_is_not_overwritten(place, tuned):
    folder = tuned("sentiment")
    before = sha256(folder / "model.safetensors"), sha256(folder / "results.json")
    result = command(*inputs(place, "sentiment", folder), "--epochs", 1)
    assert result.returncode == 2 and str(folder) in result.stderr and "Choose another --out" in result.stderr
    assert before == (sha256(folder / "model.safetensors"), sha256(folder / "results.json"))


def test_more_seeds_are_added_to_a_result(place, tmp_path):
    arguments = (*inputs(place, "sentiment", tmp_path / "out"), "--steps", 3)
    succeeded(command(*arguments, "--seeds", "5"))
    first = results(tmp_path / "out")["runs"]
    result = succeeded(command(*arguments, "--seeds", "5", "6"))
    assert "already has the results of 1 seed." in result.stdout
    assert "seed 5  epoch" not in result.stdout and "seed 6  epoch" in result.stdout
    found = results(tmp_path / "out")
    assert found["seeds"] == [5, 6] and found["runs"][:1] == first and len(found["runs"]) == 2
    assert command(*arguments, "--seeds", "6", "5").returncode == 2


def test_a_folder_in_use_is_refused_or_waited_for(place, tmp_path):
    """The second of two then has the results of the first."""
    out, arguments = tmp_path / "out", inputs(place, "sentiment", tmp_path / "out")
    out.mkdir()
    with locked(out):
        refused = command(*arguments, "--epochs", 1)
        assert refused.returncode == 2 and f"{out} is in use by another process (host" in refused.stderr
        assert [path.name for path in out.iterdir()] == [".lock"]
    first = succeeded(command(*arguments, "--epochs", 1))
    lock = locked(out)
    lock.__enter__()
    threading.Timer(1.0, lock.__exit__, (None, None, None)).start()
    waited = succeeded(command(*arguments, "--epochs", 1, "--wait"))
    assert "Waiting for its end." in waited.stderr and "already has the results of 1 seed" in waited.stdout
    assert waited.stdout.splitlines()[-3:] == first.stdout.splitlines()[-3:]


def test_one_file_for_train_and_dev_is_said(place, tmp_path):
    path = place / "sentiment.train"
    arguments = ("sentiment", "--model", place / "lm.safetensors", "--train", path, "--dev", path, *SETTINGS)
    result = succeeded(command(*arguments, "--out", tmp_path / "out", "--steps", 1, "--lr", 0.0001))
    assert "warning: all examples of --dev are also in --train. Is it one file?" in result.stderr
    assert "warning: all 60 predictions on --dev are the same: " in result.stderr
