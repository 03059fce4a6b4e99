"""Checkpoints: exact, whole or not there, and whatever happens to their files."""

import hashlib
import itertools
import json
import pickle
import random
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import train
from data import DataError, OptionError
from model import EncoderConfig, MaskedLM, ModelError, load_model
from model.checkpoints.native import fingerprint
from model.training import run_state as checkpoints
from model.training.run_state import CheckpointWriter, check_same_run, gather, newest, remove_partial_files, restore
from model.training.state import TrainState

CONFIG = EncoderConfig(1, 8, 2, 12, 30, max_positions=12, dropout=0.0)
FILES = ("student.safetensors", "state.safetensors", "state.json")
FULL = OSError(28, "No space left on device")
TEACHER = SimpleNamespace(config=EncoderConfig(1, 12, 2, 12, 30))  # of another width: there is a projection


def silent(line):
    raise AssertionError(f"nothing is damaged, but it says: {line}")


class Run:
    """A trainee with its optimiser, taught by random gradients that its seed and the step decide."""

    def __init__(self, seed=0, teacher=TEACHER, scaled=False):
        torch.manual_seed(seed)
        self.distiller = train.Distiller(MaskedLM(CONFIG), teacher, train.Options())
        self.optimiser = train.make_optimiser(self.distiller, train.Options(weight_decay=0.1))
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=2, enabled=scaled)
        self.account = TrainState()

    def learn(self, steps=1):
        for _ in range(steps):
            self.account.step += 1
            generator = torch.Generator().manual_seed(self.account.step)
            for parameter in self.distiller.parameters():
                parameter.grad = self.scaler.scale(torch.randn(parameter.shape, generator=generator))
            train.optimiser_step(self.distiller, self.optimiser, self.scaler, 0.01, train.Options())
        return self

    def save(self, writer):
        numbers = {"options": {"lr": 0.1}, **self.account.as_values()}
        path = writer.save(
            self.account.step, self.distiller.student, *gather(self.distiller, self.optimiser, self.scaler, numbers)
        )
        writer.wait()
        return path

    def tensors(self):
        """All that decides how it goes on, by name."""
        found = {name: tensor.clone() for name, tensor in self.distiller.state_dict().items()}
        for number, values in self.optimiser.state_dict()["state"].items():
            found |= {f"{number}.{name}": tensor.clone() for name, tensor in values.items()}
        return found


def same(one, other):
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def resumed(out, run):
    run.account = TrainState.of(restore(newest(out, silent), run.distiller, run.optimiser, run.scaler))
    return run


def seen(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith("."))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two checkpoints, of steps 1 and 2; -> their folder, never to be changed, and what both hold."""
    out = tmp_path_factory.mktemp("made")
    writer, run, held = CheckpointWriter(out, 2), Run(), {}
    for step in (1, 2):
        held[step] = checkpoints.read(run.learn().save(writer))
    return out, held


@pytest.fixture
def out(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "out")
    return tmp_path / "out"


def step(out, number):
    return out / "checkpoints" / f"step-{number:09}"


def check_fallback(out, held, why=""):
    """The newest is passed over with one sentence, unless what was done to it changed nothing it says."""
    said = []
    done = newest(out, said.append)
    expected = held[done.values["step"]]
    assert same(done.student, expected.student) and same(done.tensors, expected.tensors), why
    assert done.values == expected.values, why
    if done.values["step"] == 2:
        assert not said
        return False
    (sentence,) = said
    assert "is damaged" in sentence and "step-000000002" in sentence, why
    assert sentence.endswith(" The checkpoint before it is taken.") and "\n" not in sentence and len(sentence) < 600
    return True


# ---- the round trip --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True], ids=["unscaled", "scaled"])
@pytest.mark.parametrize("teacher", [None, TEACHER], ids=["no projection", "projection"])
def test_what_comes_back_is_the_same_to_the_last_bit_and_goes_on_the_same(tmp_path, teacher, scaled):
    run = Run(0, teacher, scaled).learn(3)
    run.save(CheckpointWriter(tmp_path, 2))
    other = resumed(tmp_path, Run(1, teacher, scaled))
    assert same(run.tensors(), other.tensors()) and other.account == run.account
    assert run.scaler.state_dict() == other.scaler.state_dict()
    assert same(run.learn(3).tensors(), other.learn(3).tensors())
    assert run.scaler.get_scale() == other.scaler.get_scale() == (2.0**10 if scaled else 1.0)


def test_what_was_trained_before_is_forgotten(tmp_path):
    run = Run(0).learn(2)
    run.save(CheckpointWriter(tmp_path, 2))
    assert same(resumed(tmp_path, Run(1).learn(5)).learn().tensors(), run.learn().tensors())


def test_a_checkpoint_before_the_first_step(tmp_path):
    Run(0).save(CheckpointWriter(tmp_path, 2))
    assert same(resumed(tmp_path, Run(1)).learn().tensors(), Run(0).learn().tensors())


def test_every_number_comes_back_to_the_last_bit(tmp_path):
    run = Run().learn()
    run.account = TrainState(
        1, 0.1 + 0.2, 5e-324, (1 / 3, -0.0, 1e308, 2.0**53 + 2, 1e-17), float("inf"), (1, 10**9), 2, 10**15,
        {"teacher": 0.1, "student before": 2 / 3}, None,
    )  # fmt: skip
    run.save(CheckpointWriter(tmp_path, 2))
    account = TrainState.of(newest(tmp_path, silent).values)
    assert repr(account) == repr(run.account)  # repr tells -0.0 from 0.0, and the order of the baseline


@pytest.mark.parametrize("values", [{}, {"account": None}, {"account": {"steps": 3}}])
def test_an_account_of_another_version_is_a_sentence(values):
    with pytest.raises(DataError, match="of another version of this program"):
        TrainState.of(values)


def test_strange_tensors_come_back(tmp_path):
    """NaN, infinity, the smallest numbers, halves and a view that is not contiguous."""
    tensors = {
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "bf16": torch.randn(5).bfloat16(),
        "turned": torch.randn(3, 4).t(),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(7),
    }
    writer = CheckpointWriter(tmp_path, 1)
    writer.save(1, MaskedLM(CONFIG), tensors, {"step": 1})
    writer.wait()
    found = newest(tmp_path, silent).tensors
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].contiguous().view(-1).view(torch.uint8).tolist() == (
            tensor.contiguous().view(-1).view(torch.uint8).tolist()
        )


def test_the_student_of_a_checkpoint_is_a_model_file_like_any_other(made):
    out, held = made
    model = load_model(step(out, 2) / "student.safetensors")
    assert type(model) is MaskedLM and model.config == CONFIG and same(dict(model.state_dict()), held[2].student)


def test_there_is_nothing_to_go_on_from(tmp_path):
    assert newest(tmp_path, silent) is None
    (tmp_path / "checkpoints").mkdir()
    assert newest(tmp_path, silent) is None


def test_no_pickle_is_ever_read_or_written(tmp_path, monkeypatch):
    def forbidden(*arguments, **keywords):
        raise AssertionError("a pickle")

    for module, names in ((torch, ("load", "save")), (pickle, ("load", "loads", "dump", "dumps", "Unpickler"))):
        for name in names:
            monkeypatch.setattr(module, name, forbidden)
    run = Run(scaled=True).learn(2)
    run.save(CheckpointWriter(tmp_path, 2))
    assert same(resumed(tmp_path, Run(1, scaled=True)).tensors(), run.tensors())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: SimpleNamespace(distiller=train.Distiller(MaskedLM(EncoderConfig(2, 8, 2, 12, 30, 12)), None,
                                                       train.Options())), "Missing key"),
        (lambda: Run(1, SimpleNamespace(config=EncoderConfig(1, 20, 2, 12, 30))), "size mismatch"),
        (lambda: Run(1, None), "parameter group"),
    ],
    ids=["more layers", "another width of the teacher", "without a projection"],
)  # fmt: skip
def test_a_checkpoint_of_another_run_is_a_sentence(made, other, words):
    run = other()
    optimiser = train.make_optimiser(run.distiller, train.Options())
    if words == "parameter group":
        words, optimiser = "not of this run", torch.optim.AdamW([{"params": [torch.zeros(1)]}])
        optimiser.load_state_dict = train.make_optimiser(run.distiller, train.Options()).load_state_dict
    with pytest.raises(DataError, match="is not of this run") as caught:
        restore(newest(made[0], silent), run.distiller, optimiser, torch.amp.GradScaler("cpu", enabled=False))
    assert words in str(caught.value) and "\n" not in str(caught.value)


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(out, made, name):
    """In every third byte of state.json; in the header of each tensor file, and at random places of its numbers."""
    path, chance = step(out, 2) / name, random.Random(0)
    content = path.read_bytes()
    places = range(0, len(content), 3)
    if name != "state.json":
        header = 8 + int.from_bytes(content[:8], "little")
        inside = chance.sample(range(16, header), 60) + chance.sample(range(header, len(content)), 60)
        places = [*range(16), *inside, header - 1, header, len(content) - 1]
    found = 0
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found += check_fallback(out, made[1], f"byte {place}")
    # In JSON, 1e-5 is 1E-5, and the 17th digit of a number may say nothing.
    assert found == len(places) if name != "state.json" else found >= 0.95 * len(places)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_made_longer_is_found(out, made, name):
    path = step(out, 2) / name
    content = path.read_bytes()
    for size in (0, 1, 7, 8, 9, len(content) // 2, len(content) - 2):
        path.write_bytes(content[:size])
        assert check_fallback(out, made[1], f"{size} bytes")
    path.write_bytes(content + b"\0")
    assert check_fallback(out, made[1])
    path.write_bytes(bytes(len(content)))
    assert check_fallback(out, made[1])
    path.write_bytes(content)
    assert not check_fallback(out, made[1])


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_what_is_no_file(out, made, name):
    path = step(out, 2) / name
    path.unlink()
    assert check_fallback(out, made[1])
    path.mkdir()
    assert check_fallback(out, made[1])


@pytest.mark.parametrize("names", [*itertools.combinations(FILES, 1), *itertools.combinations(FILES, 2), FILES])
def test_files_swapped_between_two_checkpoints_are_found(out, names):
    for name in names:
        one, other = step(out, 1) / name, step(out, 2) / name
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
    said = []
    with pytest.raises(DataError, match="No checkpoint in .* is whole. Restore one"):  # both are
        newest(out, said.append)
    assert len(said) == 2


def test_a_renamed_checkpoint_is_not_that_of_its_name(out, made):
    step(out, 2).rename(step(out, 3))
    said = []
    assert newest(out, said.append).values["step"] == 1 and "step-000000003 is damaged" in said[0]
    step(out, 3).rename(step(out, 2))
    assert not check_fallback(out, made[1])


def test_an_empty_folder_is_not_a_checkpoint(out, made):
    shutil.rmtree(step(out, 2))
    step(out, 2).mkdir()
    assert check_fallback(out, made[1])


def test_a_file_of_that_name_is_not_a_checkpoint(out):
    shutil.rmtree(step(out, 2))
    step(out, 2).write_text("")
    assert newest(out, silent).values["step"] == 1


def test_all_damaged_is_an_error_that_says_what_to_do(out):
    for number in (1, 2):
        (step(out, number) / "state.safetensors").write_bytes(b"")
    said = []
    with pytest.raises(DataError, match="Restore one, or choose another --out"):
        newest(out, said.append)
    assert len(said) == 2


def forged(values):
    """A state.json whose own hash is right."""
    own = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": own, "state": values}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"1", b'"state"', b"{}", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000,
        b"1" * 5000, b'{"state": {}, "sha256": 5}', b'{"state": [], "sha256": ""}', b'{"state": null, "sha256": ""}',
        forged({}), forged([]), forged("step"), forged({"step": 2}), forged({"step": "2", "hashes": {}}),
        forged({"step": 2, "hashes": []}), forged({"step": 2, "hashes": {}}), forged({"step": 2, "hashes": None}),
        forged({"step": 2, "hashes": {"../step-000000001/state.json": "0"}}),
        forged({"step": 2, "hashes": {"student.safetensors": 1, "state.safetensors": 2}}),
    ],
    ids=lambda content: repr(content[:40]),
)  # fmt: skip
def test_a_state_of_something_else_is_damage_like_any_other(out, made, content):
    (step(out, 2) / "state.json").write_bytes(content)
    assert check_fallback(out, made[1])


def test_a_tensor_file_with_the_right_hash_that_is_none(out, made):
    values = {name: value for name, value in made[1][2].values.items() if name != "hashes"}
    (step(out, 2) / "state.safetensors").write_bytes(b"\x80\x04N.")  # a pickle of None
    hashes = {name: checkpoints.sha256(step(out, 2) / name) for name in FILES[:2]}
    (step(out, 2) / "state.json").write_bytes(forged({**values, "hashes": hashes}))
    said = []
    assert newest(out, said.append).values["step"] == 1 and "not a whole .safetensors" in said[0]


# ---- writing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_so_many_are_kept(tmp_path, keep):
    writer, run = CheckpointWriter(tmp_path, keep), Run()
    for number in range(1, 5):
        run.learn().save(writer)
        assert seen(tmp_path) == [f"step-{each:09}" for each in range(max(1, number - keep + 1), number + 1)]
        assert all(checkpoints.read(tmp_path / "checkpoints" / name) for name in seen(tmp_path))
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_what_a_person_put_there_is_kept(tmp_path):
    """It is neither taken for the newest, nor counted, nor removed."""
    writer, run = CheckpointWriter(tmp_path, 1), Run()
    mine = shutil.copytree(run.learn().save(writer), tmp_path / "checkpoints" / "step-000000001-before-lunch")
    shutil.copytree(mine, tmp_path / "checkpoints" / "step-zero")
    run.learn().save(writer)
    run.learn().save(writer)
    assert seen(tmp_path) == ["step-000000001-before-lunch", "step-000000003", "step-zero"]
    assert newest(tmp_path, silent).values["step"] == 3


def test_more_steps_than_the_name_has_digits(tmp_path):
    writer, run = CheckpointWriter(tmp_path, 2), Run()
    for number in (10**9 - 2, 10**9 - 1, 10**9):
        run.account.step = number
        run.save(writer)
    assert newest(tmp_path, silent).values["step"] == 10**9 and len(seen(tmp_path)) == 2


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newest_one_is_written_anew_and_costs_no_whole_one(out, keep):
    """A run that fell back passes by the damaged ones again."""
    run = Run().learn(3)
    run.save(CheckpointWriter(out, 3))
    for number in (2, 3):
        (step(out, number) / "state.safetensors").write_bytes(b"")
    said, again = [], Run(1)
    restore(newest(out, said.append), again.distiller, again.optimiser, again.scaler)
    again.account.step = 1
    assert len(said) == 2
    writer = CheckpointWriter(out, keep)
    for number in (2, 3, 4):
        again.learn().save(writer)
        assert newest(out, silent).values["step"] == number
        assert len(seen(out)) == min(keep, number)
    assert same(again.tensors(), run.learn().tensors())


def test_the_copy_is_taken_when_save_is_called_and_nothing_waits_for_the_disk(tmp_path, monkeypatch):
    may_write, run, writer = threading.Event(), Run().learn(), CheckpointWriter(tmp_path, 2)
    before, account = run.tensors(), run.account.as_values()["account"]

    def slow(*arguments, **keywords):
        assert may_write.wait(20)
        return save_file(*arguments, **keywords)

    monkeypatch.setattr(checkpoints, "save_file", slow)
    numbers = {"options": {"lr": 0.1}, **run.account.as_values()}
    path = writer.save(1, run.distiller.student, *gather(run.distiller, run.optimiser, run.scaler, numbers))
    assert not may_write.is_set() and not path.exists()
    numbers["step"] = 77
    run.account.new_line()
    run.learn(2)
    with torch.no_grad():
        for parameter in run.distiller.parameters():
            parameter.fill_(7.0)
    assert not path.exists()
    may_write.set()
    writer.wait()
    done = newest(tmp_path, silent)
    other = Run(1)
    assert restore(done, other.distiller, other.optimiser, other.scaler)["account"] == json.loads(json.dumps(account))
    assert same(other.tensors(), before)


def test_one_checkpoint_waits_for_the_one_before(tmp_path, monkeypatch):
    running, most = [], []

    def watched(*arguments, **keywords):
        running.append(1)
        most.append(len(running))
        save_file(*arguments, **keywords)
        running.pop()

    monkeypatch.setattr(checkpoints, "save_file", watched)
    run, writer = Run(), CheckpointWriter(tmp_path, 3)
    for number in (1, 2, 3):
        run.learn()
        writer.save(number, run.distiller.student, *gather(run.distiller, run.optimiser, run.scaler, {"step": number}))
    writer.wait()
    assert max(most) == 1 and len(most) == 6 and len(seen(tmp_path)) == 3


@pytest.mark.parametrize("failing", [1, 2], ids=["student", "state"])
@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: no space left"), MemoryError("no memory"),
                                   RuntimeError("something else")], ids=lambda error: type(error).__name__)  # fmt: skip
@pytest.mark.parametrize("at", ["save", "wait"])
def test_what_could_not_be_written_is_said_at_the_next_call(out, made, monkeypatch, failing, error, at):
    run, writer, calls = Run().learn(3), CheckpointWriter(out, 1), itertools.count(1)

    def save_or_fail(*arguments, **keywords):
        if next(calls) == failing:
            raise error
        return save_file(*arguments, **keywords)

    monkeypatch.setattr(checkpoints, "save_file", save_or_fail)
    writer.save(3, run.distiller.student, *gather(run.distiller, run.optimiser, run.scaler, {"step": 3}))
    with pytest.raises(DataError, match="checkpoint could not be written to .*(o space left|no mem|else).*make room"):
        writer.wait() if at == "wait" else run.learn().save(writer)
    assert seen(out) == ["step-000000001", "step-000000002"] and not list((out / "checkpoints").glob(".*"))
    assert not check_fallback(out, made[1])
    run.account.step = 5
    run.save(writer)  # there is room again
    assert seen(out) == ["step-000000005"] and newest(out, silent).values["step"] == 5


class Killed(BaseException):
    """As SIGKILL does: nothing is tidied up."""


def test_killed_at_any_moment_of_writing_nothing_partial_is_visible(made, tmp_path, monkeypatch):
    """Before and after each thing that is done to the disk."""
    left, moments = [0], []

    def deadly(name, function):
        def call(*arguments, **keywords):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            result = function(*arguments, **keywords)
            if left[0] == 0:
                moments.append(name)
                raise Killed
            left[0] -= 1
            return result

        return call

    with monkeypatch.context() as patch:
        for place, name in ((checkpoints, "save_file"), (checkpoints, "sha256"), (checkpoints, "flush"),
                            (Path, "write_text"), (Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):  # fmt: skip
            patch.setattr(place, name, deadly(name, getattr(place, name)))
        for moment in itertools.count():
            left[0] = 10**9
            out = tmp_path / str(moment)
            shutil.copytree(made[0], out)
            run, writer = Run().learn(3), CheckpointWriter(out, 2)
            tensors, values = gather(run.distiller, run.optimiser, run.scaler, run.account.as_values())
            models, metadata = checkpoints.contents(run.distiller.student)
            left[0] = moment
            try:
                writer._write(step(out, 3), models, tensors, metadata, values)
            except Killed:
                ended = False
            else:
                ended = True
            left[0] = 10**9
            assert len(seen(out)) in (2, 3)
            assert all(checkpoints.read(out / "checkpoints" / name) for name in seen(out))
            assert newest(out, silent).values["step"] == int(seen(out)[-1][-1])
            remove_partial_files(out)
            assert not list((out / "checkpoints").glob(".*"))
            Run().learn(3).save(writer)
            assert seen(out) == ["step-000000002", "step-000000003"]
            if ended:
                break
            shutil.rmtree(out)
    assert moment > 20 and {"save_file", "flush", "rename", "write_text", "sha256"} <= set(moments)


def test_what_was_killed_is_cleaned_away_and_nothing_else(out):
    for name in (".step-000000003.partial", ".step-000000001.old"):
        shutil.copytree(step(out, 1), out / "checkpoints" / name)
    (out / "checkpoints" / "notes.txt").write_text("mine")
    (out / ".mine").write_text("mine")
    for name in (".best.safetensors.ab12_x", ".student.safetensors.ab12_x", ".run.json.partial"):
        (out / name).write_text("half")
    remove_partial_files(out)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "notes.txt", "step-000000001", "step-000000002"
    ]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == [".mine", "checkpoints"]
    remove_partial_files(out / "nowhere")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(DataError, match="checkpoint could not be written"):
        Run().learn().save(CheckpointWriter(tmp_path, 2))


def test_files_have_the_rights_of_any_other(made, tmp_path):
    (tmp_path / "usual").write_text("")
    usual = (tmp_path / "usual").stat().st_mode & 0o777
    assert {(step(made[0], 2) / name).stat().st_mode & 0o777 for name in FILES} == {usual}


# ---- which run it is -------------------------------------------------------------------------------------------

RUN = {
    "options": {"lr": 5e-4, "layers": ("alternate",), "weights": (0.5, 0.3, 0.2), "batch_size": 8, "out": "a",
                "keep": 2, "dropout": None},
    "inputs": {"corpus": ["abc", "def"], "teacher": "123"},
}  # fmt: skip


def changed(**options):
    return {**RUN, "options": {**RUN["options"], **options}}


def test_a_run_is_written_down_once_and_known_again(tmp_path):
    assert not check_same_run(tmp_path, RUN, ("out", "keep"))
    content = (tmp_path / "run.json").read_bytes()
    assert check_same_run(tmp_path, RUN, ("out", "keep"))
    assert check_same_run(tmp_path, changed(out="b", keep=7), ("out", "keep"))  # these decide nothing
    assert (tmp_path / "run.json").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_every_option_that_differs_is_named(tmp_path):
    check_same_run(tmp_path, RUN, ("out", "keep"))
    with pytest.raises(OptionError) as caught:
        check_same_run(tmp_path, changed(lr=1e-3, batch_size=4, dropout=0.0, keep=3), ("out", "keep"))
    sentence = str(caught.value)
    assert "with other --lr, --batch-size, --dropout. Give the same" in sentence and "keep" not in sentence
    with pytest.raises(OptionError, match="with other --weights. "):
        check_same_run(tmp_path, changed(weights=(0.5, 0.2, 0.3)), ("out", "keep"))
    with pytest.raises(OptionError, match="with other --new-one. "):  # an option of a later version
        check_same_run(tmp_path, changed(new_one=1), ("out", "keep"))


@pytest.mark.parametrize("field", [name for name in train.Options.__dataclass_fields__])
def test_of_the_commands_options_these_may_differ_and_no_others(tmp_path, field):
    options = dict.fromkeys(train.Options.__dataclass_fields__, 1)
    check_same_run(tmp_path, {"options": options, "inputs": {}}, train.MAY_DIFFER)
    other = {"options": {**options, field: 2}, "inputs": {}}
    if field in train.MAY_DIFFER:
        assert check_same_run(tmp_path, other, train.MAY_DIFFER)
    else:
        with pytest.raises(OptionError, match=f"with other --{field.replace('_', '-')}\\."):
            check_same_run(tmp_path, other, train.MAY_DIFFER)


@pytest.mark.parametrize(
    ("name", "value"), [("corpus", ["abc", "dee"]), ("corpus", ["abc"]), ("teacher", "124"), ("teacher", None)]
)
def test_another_teacher_or_corpus_under_the_same_name_is_refused(tmp_path, name, value):
    check_same_run(tmp_path, RUN, ())
    with pytest.raises(OptionError, match=f"a run with another {name} than is there now. Restore it"):
        check_same_run(tmp_path, {**RUN, "inputs": {**RUN["inputs"], name: value}}, ())


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{}", b'{"options": {}}', b'{"options": [], "inputs": {}}', b"\xff", b"[" * 100_000,
     b'{"options": null, "inputs": null}', json.dumps({**RUN, "inputs": []}).encode()],
    ids=lambda content: repr(content[:40]),
)  # fmt: skip
def test_a_damaged_run_json_is_a_sentence(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match="run.json cannot be read. Choose another --out"):
        check_same_run(tmp_path, RUN, ())


def test_a_model_is_known_by_its_numbers(made):
    model = load_model(step(made[0], 2) / "student.safetensors")
    known = fingerprint(model)
    again = MaskedLM(CONFIG)
    again.load_state_dict(dict(reversed(load_file(step(made[0], 2) / "student.safetensors").items())))
    assert fingerprint(again) == known and fingerprint(again.train()) == known
    with torch.no_grad():
        again.bias[3] = torch.nextafter(again.bias[3], torch.tensor(10.0))
    assert fingerprint(again) != known
    assert fingerprint(model.double()) != known
    assert fingerprint(torch.nn.Linear(2, 3)) != fingerprint(torch.nn.Linear(3, 2))


def test_what_is_read_raises_only_what_is_caught():
    assert issubclass(DataError, ValueError) and issubclass(ModelError, ValueError)
    with pytest.raises(DataError):
        checkpoints.read(Path("/nowhere/step-000000001"))
