"""Models named owner/name in every command: fetched once, then used without the hub; a wrong path is named first."""

import json
import shutil
import threading
from dataclasses import dataclass

import pytest

from data import DataError, demo
from data.download import hub
from data.download.hub import download
from data.download.models import fetch_models, local_path, parse_name
from data.tasks import TASKS
from tests.data.download.fake_hub import COMMIT, DATASET, FILES, OTHER, PUSHED, REPOSITORY, TOKENIZER, tree
from tests.data.prepared import lines, texts
from tests.helpers import huggingface_model, run_command
from tests.test_ranks import TWO_RANKS
from tests.train_runs import Command, provenance

PINNED = f"{REPOSITORY}@{COMMIT}"


@dataclass(frozen=True)
class Options:
    model: str | None = None
    teacher: str = "demo"
    tokenizer: str | None = None


def found(**values) -> dict:
    return vars(fetch_models(Options(**values), "model", "teacher", "tokenizer"))


def assert_refused(message: str, **values) -> None:
    with pytest.raises(DataError, match=message):
        found(**values)


# ---- names -----------------------------------------------------------------------------------------------------


def test_a_path_stays_and_a_name_gets_its_commit(fake, tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "cache" / "almanach--camembert-base" / COMMIT)
    assert found(model=str(tmp_path)) == vars(Options(str(tmp_path))) and not fake.requests
    assert found(model=REPOSITORY) == vars(Options(PINNED))
    assert (
        f"note: {REPOSITORY} is not a local path; it was found on the hub, commit {COMMIT}." in capsys.readouterr().err
    )
    assert local_path(REPOSITORY) == local_path(PINNED) and str(local_path(PINNED)) == path
    assert tree(local_path(PINNED)) == FILES
    monkeypatch.chdir(tmp_path)
    (tmp_path / REPOSITORY).mkdir(parents=True)
    fake.requests.clear()
    assert found(model=REPOSITORY)["model"] == REPOSITORY == str(local_path(REPOSITORY)) and not fake.requests


def test_of_a_tokenizer_that_file_alone_is_fetched(fake, tmp_path):
    path = tmp_path / "cache" / "almanach--camembert-base" / COMMIT / "sentencepiece.bpe.model"
    assert found(tokenizer=REPOSITORY)["tokenizer"] == str(path) and path.read_bytes() == TOKENIZER
    assert {request.name for request in fake.requests} == {path.name}
    del fake.commits[COMMIT]["sentencepiece.bpe.model"]
    fake.commits[PUSHED], fake.main = fake.commits[COMMIT], PUSHED
    assert_refused("has no tokenizer: none of sentencepiece.bpe.model", tokenizer=REPOSITORY)


NAMES = {
    "a/b": ("a/b", "main"),
    "a/b.c@v1": ("a/b.c", "v1"),
    "a/b@refs/pr/1": ("a/b", "refs/pr/1"),
    "a/b@": ("a/b", ""),
}
PATHS = [
    "a",
    "a/b/c",
    "/a/b",
    "./a/b",
    "../b",
    "a/..",
    "a/b.safetensors",
    "a/b.PT",
    "a/b.tar.gz@main",
    "a--b/c",
    "-a/b",
]


@pytest.mark.parametrize("name", [*NAMES, *PATHS])
def test_what_is_a_name_on_the_hub(fake, name):
    assert parse_name(name) == NAMES.get(name)
    if name in PATHS:
        assert_refused(f"There is no (file|model) {name}. Check the path", model=name)
        assert str(local_path(name)) == name.removeprefix("./") and not fake.requests


def test_a_path_with_a_typing_error_looks_like_a_name(fake):
    message = "There is no file or folder runs/studnet here, and none from the hub: There is no repository runs/studnet"
    assert_refused(message, model="runs/studnet")
    fake.status["config.json"] = [503] * hub.ATTEMPTS
    assert_refused(f"no file or folder {REPOSITORY} here, and none from the hub: .*503.*connection", model=REPOSITORY)
    assert_refused("A revision is a branch, a tag or a commit, not ''", model=f"{REPOSITORY}@")
    assert_refused("has no revision v9", model=f"{REPOSITORY}@v9")
    assert_refused(
        "There is no model camembert-base. Check the path; on the hub, it is written owner/name", model="camembert-base"
    )


# ---- once ------------------------------------------------------------------------------------------------------


def test_a_complete_copy_needs_no_hub(fake, tmp_path, monkeypatch, capsys):
    folder = download(REPOSITORY, tmp_path)
    fake.requests.clear()
    assert download(REPOSITORY, tmp_path, COMMIT) == folder and not fake.requests
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download(REPOSITORY, tmp_path) == folder and not fake.requests
    assert download(REPOSITORY, tmp_path, what="tokenizer") == folder and not fake.requests
    with pytest.raises(DataError, match="not complete in the cache, and HF_HUB_OFFLINE forbids to fetch it"):
        download(REPOSITORY, tmp_path, "v1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert download(REPOSITORY, tmp_path) == folder
    assert f"note: the hub cannot be reached. {REPOSITORY} is used as it is in the cache." in capsys.readouterr().err
    with pytest.raises(DataError, match="does not respond"):
        download(REPOSITORY, tmp_path, PUSHED)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "sentencepiece.bpe.model"])
def test_a_copy_that_is_not_complete_is_never_used(fake, tmp_path, monkeypatch, name):
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    fake.faults[name] = ["breaks"]
    with pytest.raises(DataError, match=f"{name} stopped after"):
        download(REPOSITORY, tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for revision in ("main", COMMIT):
        with pytest.raises(DataError, match="not complete in the cache"):
            download(REPOSITORY, tmp_path, revision)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert tree(download(REPOSITORY, tmp_path)) == FILES


def test_after_a_push_the_new_files_are_used_once_they_are_complete(fake, tmp_path, capsys):
    old = download(REPOSITORY, tmp_path)
    fake.commits[PUSHED], fake.main = FILES | {"model.safetensors": OTHER}, PUSHED
    fake.faults["model.safetensors"] = ["breaks"] * hub.ATTEMPTS
    assert download(REPOSITORY, tmp_path) == old and "the hub cannot be reached" in capsys.readouterr().err
    new = download(REPOSITORY, tmp_path)
    assert new.name == PUSHED and tree(new) == fake.commits[PUSHED] and tree(old) == FILES


@pytest.mark.parametrize("content", ["", "../../x", "c" * 40, "\xff"])
def test_a_damaged_note_of_what_is_complete_is_not_followed(fake, tmp_path, monkeypatch, content):
    download(REPOSITORY, tmp_path)
    note = tmp_path / "almanach--camembert-base" / "complete" / "model@main"
    assert note.read_text() == COMMIT
    note.write_text(content, encoding="latin-1")
    assert tree(download(REPOSITORY, tmp_path)) == FILES and note.read_text() == COMMIT


def test_two_processes_do_not_download_into_the_same_file(fake, tmp_path, monkeypatch, capsys):
    """Here two threads: a lock of flock belongs to the open file, not to the process."""
    started, results = threading.Event(), []

    def before(request):
        if request.name == "model.safetensors" and request.method == "GET":
            started.set()
            fake.release.wait(0.2)

    fake.before = before
    threads = [threading.Thread(target=lambda: results.append(download(REPOSITORY, tmp_path))) for _ in range(2)]
    threads[0].start()
    assert started.wait(5)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] and tree(results[0]) == FILES
    assert [request.name for request in fake.gets("model.safetensors")] == ["model.safetensors"] * 2  # hub, CDN
    assert "Waiting for its end" in capsys.readouterr().err


# ---- commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    """What the hub has of a small masked LM and of a small classifier of sentence pairs."""
    files = {}
    for kind, settings in {
        "CamembertForMaskedLM": {},
        "CamembertForSequenceClassification": {"id2label": dict(enumerate(["entailment", "neutral"]))},
    }.items():
        folder = tmp_path_factory.mktemp(kind)
        huggingface_model(kind=kind, vocab_size=1005, **settings).float().save_pretrained(folder)
        shutil.copy(demo.FOLDER / "sentencepiece.bpe.model", folder)
        files[kind] = {name: (folder / name).read_bytes() for name in FILES}
    return files


@pytest.fixture
def masked_lm(fake, hosted):
    fake.commits[COMMIT] = hosted["CamembertForMaskedLM"]


@pytest.fixture
def classifier(fake, hosted):
    fake.commits[COMMIT] = hosted["CamembertForSequenceClassification"]


def succeeded(script: str, *arguments):
    result = run_command(script, *arguments)
    assert result.returncode == 0, result.stderr
    return result


TRAIN = ["--steps", 2, "--batch-size", 2, "--block-size", 32, "--layers", "0", "--device", "cpu", "--precision", "fp32"]


def test_the_main_job(fake, masked_lm, tmp_path):
    fake.texts[COMMIT] = {"data/a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts(200)).encode()}
    places = ["--out", tmp_path / "out", "--cache", tmp_path / "corpora"]
    command = ["train.py", "--teacher", REPOSITORY, "--corpus", f"hub:{DATASET}", *TRAIN, *places]
    succeeded(*command)
    options = provenance(tmp_path / "out")["options"]
    assert (options["teacher"], options["corpus"]) == (PINNED, [f"hub:{DATASET}"])
    fake.requests.clear()
    fake.commits[PUSHED], fake.texts[PUSHED] = fake.commits[COMMIT] | {"README.md": b"x"}, fake.texts[COMMIT]
    fake.main = PUSHED  # the same weights and texts in another commit: the same run
    assert "is finished" in succeeded(*command).stdout
    card = succeeded("convert_weights.py", tmp_path / "out" / "student.safetensors", tmp_path / "hf", "--to", "hf")
    assert "MaskedLM, 1 layers" in card.stdout
    assert f"Distilled from `{PINNED}`" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def test_the_command_that_fetches_what_a_lone_file_lacks(fake, hosted, masked_lm, tmp_path):
    alone, whole = tmp_path / "pytorch.safetensors", tmp_path / "whole.safetensors"
    alone.write_bytes(hosted["CamembertForMaskedLM"]["model.safetensors"])
    for command in (["train.py", "--teacher", alone], ["-m eval", "fill-mask", "un <mask>", "--model", alone]):
        error = run_command(*command).stderr.splitlines()[-1]
        assert f"There is no sentencepiece.bpe.model inside or beside {alone}." in error
    script, *words = error.split(": python ")[1].split()
    succeeded(script, *(whole if word == "whole.safetensors" else word for word in words))
    assert "un" in succeeded("-m eval", "fill-mask", "un <mask>", "--model", whole).stdout


def test_of_several_ranks_one_fetches(fake, masked_lm, tmp_path):
    (tmp_path / "corpus.txt").write_text(lines(200))
    places = ["--out", tmp_path / "out", "--cache", tmp_path / "corpora", "--corpus", tmp_path / "corpus.txt"]
    with Command(*TWO_RANKS, "--teacher", REPOSITORY, *TRAIN, "--accumulate", 2, *places) as command:
        assert command.end() == 0, command.output
    assert len([request for request in fake.gets("model.safetensors") if request.host == "cdn"]) == 1
    assert len([request for request in fake.requests if request.method == "HEAD"]) == 8


def test_commands_on_a_masked_lm(fake, masked_lm, tmp_path):
    assert "<mask>" not in succeeded("-m eval", "fill-mask", "un <mask>", "--model", REPOSITORY).stdout
    assert "MaskedLM: L = 2" in succeeded("-m model.parameters", REPOSITORY).stdout
    assert "the same as in transformers" in succeeded("convert_weights.py", "--check", REPOSITORY).stdout
    succeeded("convert_weights.py", f"{REPOSITORY}@{COMMIT}", tmp_path / "ours.safetensors")
    options = ["--teacher", "none", "--tokenizer", REPOSITORY, "--student", REPOSITORY, "--out", tmp_path / "out"]
    (tmp_path / "corpus.txt").write_text(lines(200))
    words = [word for word in TRAIN if word not in ("--layers", "0")]
    options += ["--corpus", tmp_path / "corpus.txt", "--cache", tmp_path / "corpora"]
    assert f"from {PINNED}" in succeeded("train.py", *options, *words).stdout
    examples = tmp_path / "examples.jsonl"
    examples.write_text("".join(f'{{"text": "{word}", "label": "{word}"}}\n' for word in ("bon", "mauvais")))
    data = [word for part in ("train", "dev") for word in (f"--{part}", examples)]
    succeeded(
        "-m eval", "finetune", "sentiment", "--model", REPOSITORY, *data, "--steps", 1, "--out", tmp_path / "tuned"
    )
    assert provenance(tmp_path / "tuned", "model")["options"]["model"] == PINNED
    succeeded("-m data.prepare", "--tokenizer", REPOSITORY, "--out", tmp_path / "tokens", tmp_path / "corpus.txt")


def test_commands_on_a_classifier(fake, classifier, tmp_path):
    example = {"premise": "un film", "hypothesis": "un livre", "label": "neutral", "text": "un film"}
    (tmp_path / "in.jsonl").write_text(json.dumps(example) + "\n")
    result = succeeded("-m eval", "predict", "nli", "--model", REPOSITORY, tmp_path / "in.jsonl")
    assert json.loads(result.stdout)["label"] in ("entailment", "neutral")
    result = succeeded(
        *("-m eval", "zero-shot", "--model", REPOSITORY, tmp_path / "in.jsonl"),
        *("--labels", "film", "livre"),
    )
    assert json.loads(result.stdout)["label"] in ("film", "livre")
    out = tmp_path / "out.json"
    succeeded("-m eval", "nli", "--model", REPOSITORY, "--test", tmp_path / "in.jsonl", "--out", out)
    assert json.loads(out.read_text())["options"]["model"] == PINNED


MISSING = {  # command -> options with a path that must be named; BARE is a model without a tokenizer
    "train.py": [
        "--out OUT --teacher NOTHING",
        "--out OUT --teacher BARE --student NOTHING",
        "--out OUT --teacher BARE --corpus NOTHING",
    ],
    "convert_weights.py": ["NOTHING OUT", "NOTHING OUT --to hf", "BARE OUT --to hf --tokenizer NOTHING"],
    "-m data.prepare": ["--tokenizer NOTHING --out OUT BARE", "--tokenizer BARE --out OUT NOTHING"],
    "-m data.inspect": ["NOTHING", "FOLDER --tokenizer NOTHING"],
    "-m model.parameters": ["NOTHING"],
    "-m eval fill-mask": ["<mask> --model NOTHING"],
    "-m eval zero-shot": [
        "--labels a b --model NOTHING",
        "--labels a b --model BARE NOTHING",
        "--labels a b --model BARE --test NOTHING",
    ],
    "-m eval speed": ["--student NOTHING", "--teacher NOTHING", "--student BARE --text NOTHING"],
    "-m eval table2": [
        "--teacher BARE --student NOTHING --data FOLDER",
        "--teacher NOTHING --student BARE --data FOLDER",
        "--teacher BARE --student BARE --data NOTHING",
    ],
}
for task in TASKS:
    MISSING[f"-m eval {task}"] = ["--test BARE --model NOTHING", "--model BARE --test NOTHING"]
    MISSING[f"-m eval predict {task}"] = ["--model NOTHING", "--model BARE NOTHING"]
    files = "--train FOLDER --dev FOLDER --out OUT"
    MISSING[f"-m eval finetune {task}"] = [f"{files} --model NOTHING", f"{files} --model BARE --teacher NOTHING"]
    MISSING[f"-m eval finetune {task}"] += ["--train BARE --dev NOTHING --out OUT --model BARE"]


@pytest.mark.parametrize(("command", "options"), [(name, each) for name, all in MISSING.items() for each in all])
def test_a_path_that_does_not_exist_is_named_before_anything_else(fake, hosted, tmp_path, command, options):
    places = {"NOTHING": tmp_path / "nothing.x", "OUT": tmp_path / "out", "FOLDER": tmp_path / "bare"}
    places["BARE"] = tmp_path / "bare" / "model.safetensors"
    places["FOLDER"].mkdir()
    places["BARE"].write_bytes(hosted["CamembertForMaskedLM"]["model.safetensors"])
    script = command if command.endswith(".py") else " ".join(command.split()[:2])
    words = [*command.removeprefix(script).split(), *(places.get(word, word) for word in options.split())]
    result = run_command(script, *words)
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    error = result.stderr.splitlines()[-1]
    kind = "tokenizer" if "--tokenizer NOTHING" in options else "corpus" if "corpus" in options else "file"
    kind = "corpus" if command == "-m data.prepare" and kind == "file" else kind
    assert f": There is no {kind} {places['NOTHING']}. Check the path" in error and result.stderr.count("\n") == 1
    assert not fake.requests and not places["OUT"].exists()
