"""The whole command on the demo, in one process: its files, going on, more seeds, other inputs, wrong options."""

import json
from types import SimpleNamespace

import pytest

import train
from data import demo
from data.cli import OptionError
from data.tokenizer import FILE_NAME, Tokenizer
from eval.reproduce import command, jobs
from eval.reproduce.command import Options, choose_variants, main, stored_plan, teacher_config
from eval.reproduce.plan import Lengths, Speed
from model import EncoderConfig
from model.checkpoints.load import load_checkpoint
from model.checkpoints.native import fingerprint

SMALL = ("--tokens", "2048", "--blocks", "16", "--tasks", "nli", "--limit", "8", "--task-epochs", "1")
SMALL += ("--variants", "paper", "mlm-only", "--batch-size", "2", "--block-size", "64", "--jobs", "1")


@pytest.fixture
def in_one_process(monkeypatch):
    """-> the names of the jobs that were run. The processes themselves are tested in test_jobs."""
    names = []

    def start(job, pool):
        names.append(job.name)
        job.run(*job.arguments)
        return SimpleNamespace(is_alive=lambda: False, exitcode=0, sentinel=-1)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "wait", lambda sentinels, seconds: None)
    monkeypatch.setattr(command, "DEMO_COUNTS", {"nli": 40})
    monkeypatch.setattr(train, "VALIDATION_BLOCKS", 4)
    return names


def test_the_demo(tmp_path, in_one_process, capsys, monkeypatch):
    """Killed between two jobs, it goes on with what is missing; another seed extends it; other inputs are refused."""
    arguments = [*SMALL, "--cache", str(tmp_path / "corpora"), "--out", str(tmp_path / "out")]
    (tmp_path / "out" / "timing" / "alone").mkdir(parents=True)
    (tmp_path / "out" / "timing" / "alone" / "timing.json").write_text("of a start that was killed")
    assert main([*arguments, "--seeds", "0"]) == 0
    students, tasks = ["paper-0", "mlm-only-0"], ["tasks-teacher-0", "tasks-paper-0", "tasks-mlm-only-0"]
    assert in_one_process == ["alone", "teacher-held-out", *students, *tasks, "speed"]
    said = capsys.readouterr().out
    assert said.index("Plan, 1 at a time") < said.index("1 of 7") and "in all." in said
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["scale"]["tokens"] == 2048 and results["scale"]["held_out_blocks"] == 16
    assert results["parameters"]["teacher"]["equation_9"] == results["parameters"]["teacher"]["counted"] == 1_384_320
    assert (tmp_path / "out" / FILE_NAME).read_bytes() == Tokenizer(demo.FOLDER).content
    assert results["teacher"]["weights"] == fingerprint(load_checkpoint(demo.TEACHER).float())
    paper = results["variants"]["paper"]["runs"][0]
    assert paper["command"].startswith("python train.py --teacher demo") and paper["curve"][-1][0] == 2048
    metrics = (tmp_path / "out" / "runs" / "paper-0" / "metrics.jsonl").read_text().splitlines()
    assert paper["teacher_on_curve"] == json.loads(metrics[-1])["held_out"]["teacher_accuracy"]
    assert set(results["tasks"]["nli"]["models"]) == {"teacher", "paper", "mlm-only"}
    assert results["statistics"] and "accuracy" in results["tasks"]["nli"]["baseline"]
    of_paper = tmp_path / "out" / "runs" / "paper-0"
    assert not (of_paper / "checkpoints").exists() and not list(of_paper.glob("best*")) and paper["seconds"] > 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert report in said and "python train.py --teacher demo" in report

    in_one_process.clear()
    (of_paper / "figures.json").unlink()  # as if it had been killed before
    assert main([*arguments, "--seeds", "0", "1"]) == 0
    assert in_one_process[:3] == ["paper-0", "paper-1", "mlm-only-1"] and "tasks-teacher-0" not in in_one_process
    again = json.loads((tmp_path / "out" / "results.json").read_text())["variants"]["paper"]["runs"]
    assert [run["seed"] for run in again] == [0, 1] and again[0]["accuracy"] == paper["accuracy"]
    assert again[0]["seconds"] == paper["seconds"]  # of its training, which was not repeated

    for reason, status in ((f"{jobs.FAILED} with status 3: no memory", 1), (jobs.NO_TIME, 0)):
        monkeypatch.setattr(command, "run_jobs", lambda *_, said=reason: {"random-0": said})
        assert main(arguments) == status and f"- random-0: {reason}" in capsys.readouterr().out
    with pytest.raises(OptionError, match=r"plan.json belongs to other inputs \(block_size\). Choose another --out"):
        main([*arguments, "--block-size", "32"])
    stored = json.loads((tmp_path / "out" / "plan.json").read_text())
    for default in ("train.py --clip", "lr of nli", "learning rate", "variant paper"):  # of an earlier version
        earlier = {**stored, "identity": {**stored["identity"], default: "another"}}
        (tmp_path / "out" / "plan.json").write_text(json.dumps(earlier))
        with pytest.raises(OptionError, match=rf"belongs to other inputs \({default}\)"):
            main(arguments)
    (tmp_path / "out" / "plan.json").write_text('{"identity": {')
    with pytest.raises(OptionError, match=r"plan.json is damaged or of another version"):
        main(arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(minutes=5.0, tokens=5000), "give one of them"),
        (dict(teacher="camembert.safetensors"), "--corpus is missing"),
        (dict(corpus=("texts",)), "--corpus needs --teacher"),
        (dict(teacher="none", corpus=("texts",)), "--teacher none needs --tokenizer"),
        (dict(small=True), "--small needs --teacher none"),
        (dict(teacher="none", tokenizer="sentencepiece.bpe.model"), "--tokenizer needs --corpus"),
        (dict(seeds=(1, 1)), "--seeds 1 1 has duplicates"),
    ],
)
def test_options_that_make_no_sense(arguments, message):
    with pytest.raises(OptionError, match=message):
        Options(**arguments)


def test_a_plan_belongs_to_its_inputs_and_takes_further_tasks(tmp_path):
    path, speed, lengths = tmp_path / "plan.json", Speed(1e9, 1.0, 2e9), Lengths(2048, 0, None, 16)
    assert stored_plan(path, {}, None) is None
    stored = {"identity": {"data of qa": "1"}, "speed": speed._asdict(), "lengths": lengths._asdict()}
    path.write_text(json.dumps(stored))
    assert stored_plan(path, {"data of nli": "2"}, None) == (speed, lengths)
    assert stored_plan(path, {"data of qa": "1", "data of nli": "2"}, 2048) == (speed, lengths)
    with pytest.raises(OptionError, match=r"other inputs \(data of nli\)"):
        stored_plan(path, {"data of nli": "3"}, None)
    with pytest.raises(OptionError, match=r"students that read 2,048 tokens. Choose another --out"):
        stored_plan(path, {}, 4096)
    path.write_text(json.dumps({**stored, "identity": {"teacher": "3"}}))
    _, pretrained = teacher_config(None, Tokenizer(demo.FOLDER), Options(teacher="none"))
    with pytest.raises(OptionError, match=r"other inputs \(teacher\)"):
        stored_plan(path, pretrained, None)
    path.unlink()
    (tmp_path / "runs").mkdir()
    with pytest.raises(OptionError, match="has runs, but no plan.json"):
        stored_plan(path, {}, None)


def test_variants_that_a_teacher_does_not_have(capsys):
    five = EncoderConfig(num_layers=5, hidden_size=8, num_heads=2, intermediate_size=8, vocab_size=20)
    assert [variant.name for variant in choose_variants(("both-ends", "paper"), five, None)] == ["paper"]
    assert "With a teacher of 5 layers there is no variant both-ends." in capsys.readouterr().out
    with pytest.raises(OptionError, match="--variants: name others"):
        choose_variants(("both-ends",), five, None)
