"""The data of Table 2: which file is for what, and the split."""

import zipfile
from collections import Counter
from itertools import chain

import pytest

import eval.tasks.table2 as module
from data import DataError, OptionError
from data.tasks import Answer, QuestionExample, TextExample
from eval.tasks.table2 import Options, read_parts, split
from tests.eval.tasks.shared import write


def test_files_of_a_folder(tmp_path):
    about = (
        "train/test_labels.txt",
        ".cache/a.json",
        "README.md",
        ".test.swp",
        "train/dataset_info.json",
        "train/state.json",
    )
    for name in ("b.train.tsv", "a/train.tsv", "train/test_text.txt", "dev/data.arrow", *about):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    (tmp_path / "train" / "test_text.txt").rename(tmp_path / "train" / "x_text.txt")
    (tmp_path / "train" / "test_labels.txt").rename(tmp_path / "train" / "x_labels.txt")
    names = {"a/train.tsv": "train", "b.train.tsv": "train", "dev/data.arrow": "dev", "train/x_text.txt": "train"}
    assert module.find_files(tmp_path) == {str(tmp_path / name): part for name, part in names.items()}
    (tmp_path / "all.json").write_text("a")
    with pytest.raises(DataError, match=r"all.json does not say whether it is for train, dev or test, as a/train.tsv"):
        module.find_files(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="There is no file in"):
        module.find_files(tmp_path / "empty")


def test_the_part_of_an_archive_is_also_in_the_name_of_its_file(tmp_path):
    for name, member in (("XNLI.zip", "xnli.test.tsv"), ("MultiNLI.zip", "train.tsv")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(member, "a")
    assert list(module.find_files(tmp_path).values()) == ["train", "test"]
    (tmp_path / "XNLI.zip").rename(tmp_path / "train.zip")
    with pytest.raises(DataError, match="has the words train and test"):
        module.find_files(tmp_path)


def questions(contexts: int, each: int):
    answers = (Answer("contexte", 0),)
    return [QuestionExample(f"{c}-{q}", f"contexte {c}", "?", answers) for c in range(contexts) for q in range(each)]


@pytest.mark.parametrize("examples", [questions(30, 4), [TextExample("a", str(i)) for i in range(120)]])
def test_every_example_is_in_one_part(examples):
    parts = split(examples, 5, {"dev": 0.1, "test": 0.2})
    assert list(parts) == ["dev", "test", "train"]
    together = [example for part in parts.values() for example in part]
    assert Counter(together) == Counter(examples) and len(together) == 120
    assert len(parts["dev"]) == 12 and len(parts["test"]) == 24
    assert parts == split(examples, 5, {"dev": 0.1, "test": 0.2})
    assert parts != split(examples, 6, {"dev": 0.1, "test": 0.2})
    if isinstance(examples[0], QuestionExample):
        contexts = [{example.context for example in part} for part in parts.values()]
        assert not (contexts[0] & contexts[1] or contexts[0] & contexts[2] or contexts[1] & contexts[2])


def test_a_part_has_at_least_one_example():
    parts = split([TextExample("a", str(i)) for i in range(3)], 0, {"dev": 0.1, "test": 0.1})
    assert [len(part) for part in parts.values()] == [1, 1, 1]


def read(folder, **settings):
    """The numbers of each part's examples, see review_file, and the files."""
    data = read_parts("sentiment", folder, Options(teacher="t", student="s", data=str(folder), **settings))
    assert all(example.label == str(int(example.text) % 2) for example in chain(*data.parts.values()))
    return {part: [int(example.text) for example in examples] for part, examples in data.parts.items()}, data.files


def review_file(path, start, count):
    write(path, *({"text": str(i), "label": str(i % 2)} for i in range(start, start + count)))


def test_a_data_set_in_one_piece_is_split(tmp_path, capsys):
    review_file(tmp_path / "valeurs.jsonl", 0, 30)
    review_file(tmp_path / "testimonials.jsonl", 30, 10)
    found, files = read(tmp_path)
    assert files == (str(tmp_path / "testimonials.jsonl"), str(tmp_path / "valeurs.jsonl"))
    assert sorted(chain(*found.values())) == list(range(40)) and len(found["dev"]) == len(found["test"]) == 4
    assert capsys.readouterr().out.splitlines() == [
        f"sentiment: {tmp_path}",
        f"  in one piece        10 examples  {tmp_path}/testimonials.jsonl",
        f"  in one piece        30 examples  {tmp_path}/valeurs.jsonl",
        "  Drawn at random (--split-seed 0): 4 dev, 4 test; 32 remain for train.",
    ]
    assert read(tmp_path) == (found, files)
    assert read(tmp_path, split_seed=1)[0] != found


def test_parts_from_files(tmp_path, capsys):
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
    review_file(tmp_path / "test" / "data.jsonl", 70, 3)
    with pytest.raises(DataError, match="has examples for test, but none for train"):
        read(tmp_path)
    review_file(tmp_path / "train" / "data.jsonl", 0, 60)
    capsys.readouterr()
    found, _ = read(tmp_path)  # the missing dev is drawn from train
    assert found["test"] == [70, 71, 72] and len(found["dev"]) == 6
    assert sorted(found["train"] + found["dev"]) == list(range(60))
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"  test                 3 examples  {tmp_path}/test/data.jsonl",
        f"  train               60 examples  {tmp_path}/train/data.jsonl",
        "  Drawn at random (--split-seed 0): 6 dev; 54 remain for train.",
    ]
    review_file(tmp_path / "dev.jsonl", 80, 10)
    whole, files = read(tmp_path)
    assert whole == {"train": list(range(60)), "test": [70, 71, 72], "dev": list(range(80, 90))} and len(files) == 3
    few, _ = read(tmp_path, limit=7)
    assert len(set(few["train"])) == 7 and set(few["train"]) <= set(whole["train"])
    assert few["dev"] == whole["dev"] and few["test"] == whole["test"]
    assert few == read(tmp_path, limit=7)[0]
    assert read(tmp_path, limit=700)[0] == whole
    review_file(tmp_path / "all.jsonl", 90, 3)
    with pytest.raises(DataError, match="all.jsonl does not say whether"):
        read(tmp_path)


@pytest.mark.parametrize("names", [["test.jsonl"], ["dev.jsonl", "test.jsonl"], ["xnli.test.jsonl", "b/testset.jsonl"]])
def test_nothing_is_taken_from_a_test_file_for_training(tmp_path, names):
    (tmp_path / "b").mkdir()
    for name in names:
        review_file(tmp_path / name, 0, 40)
    with pytest.raises(DataError, match="but none for train"):
        read(tmp_path)


def test_parts_that_the_rows_name(tmp_path, capsys):
    """As SICK's SemEval_set."""
    rows = [{"text": str(i), "label": str(i % 2), "split": ("train", "test", "validation")[i % 3]} for i in range(60)]
    write(tmp_path / "all.jsonl", *rows)
    found, _ = read(tmp_path)
    assert found == {"train": [*range(0, 60, 3)], "test": [*range(1, 60, 3)], "dev": [*range(2, 60, 3)]}
    assert capsys.readouterr().out.count(f"{tmp_path}/all.jsonl") == 3
    write(tmp_path / "all.jsonl", *rows, {"text": "60", "label": "0"})
    with pytest.raises(DataError, match="Mark all or none"):
        read(tmp_path)
    (tmp_path / "all.jsonl").rename(tmp_path / "train.jsonl")
    write(tmp_path / "train.jsonl", *rows)
    found, _ = read(tmp_path)  # in a file for train, only the rows for train
    assert sorted(chain(*found.values())) == [*range(0, 60, 3)]
    assert "train.jsonl: only its rows of train are read" in capsys.readouterr().err
    write(tmp_path / "train.jsonl", *(row for row in rows if row["split"] == "test"))
    with pytest.raises(DataError, match="train.jsonl is for train by its name, but for test by its rows"):
        read(tmp_path)


def test_the_label_map_of_a_task(tmp_path):
    write(tmp_path / "train.jsonl", *({"premise": "a", "hypothesis": str(i), "label": i % 2} for i in range(20)))
    options = {"teacher": "t", "student": "s", "data": str(tmp_path)}
    with pytest.raises(DataError, match="label is 0, a number"):
        read_parts("nli", tmp_path, Options(**options, label_map=("sentiment:0=neg",)))
    data = read_parts("nli", tmp_path, Options(**options, label_map=("nli:0=oui", "nli:1=non", "sentiment:0=neg")))
    assert {example.label for example in data.parts["train"]} == {"oui", "non"}
    for wrong in ("0=oui", "qa:0=oui", "nli=oui"):
        with pytest.raises(OptionError, match="must begin with its task: sentiment, ner, nli, as in nli:0=entailment"):
            Options(**options, label_map=(wrong,))
    with pytest.raises(OptionError, match="several names, oui, non"):
        read_parts("nli", tmp_path, Options(**options, label_map=("nli:0=oui,non",)))


def test_too_few_examples(tmp_path):
    review_file(tmp_path / "all.jsonl", 0, 2)
    with pytest.raises(DataError, match="too few examples: none is left to train on"):
        read(tmp_path)


def test_linked_folders(tmp_path):
    """A loop is entered once."""
    for part, start in (("train", 0), ("test", 40)):
        (tmp_path / "elsewhere" / part).mkdir(parents=True)
        review_file(tmp_path / "elsewhere" / part / "data.jsonl", start, 20)
    (tmp_path / "sentiment").mkdir()
    for part in ("train", "test"):
        (tmp_path / "sentiment" / part).symlink_to(tmp_path / "elsewhere" / part)
        (tmp_path / "elsewhere" / part / "again").symlink_to(tmp_path / "sentiment" / part)
    found, _ = read(tmp_path / "sentiment")
    assert found["test"] == list(range(40, 60)) and sorted(found["train"] + found["dev"]) == list(range(20))


def test_the_same_examples_in_two_files(tmp_path, capsys):
    review_file(tmp_path / "a.jsonl", 0, 20)
    rows = "".join(f"{i},{i % 2}\n" for i in range(20))
    (tmp_path / "b.csv").write_text(f"text,label\n{rows}")
    found, _ = read(tmp_path)
    assert sorted(chain(*found.values())) == list(range(20))
    left_out = f"  left out            20 examples  {tmp_path}/b.csv, the same as {tmp_path}/a.jsonl"
    assert capsys.readouterr().out.splitlines()[2] == left_out
    (tmp_path / "a.jsonl").rename(tmp_path / "test.jsonl")
    (tmp_path / "b.csv").rename(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"train.csv \(train\) has the same examples as .*test.jsonl \(test\)"):
        read(tmp_path)


def test_files_in_other_languages_are_named(tmp_path, capsys):
    for number, name in enumerate(("fr", "de", "en")):
        (tmp_path / name).mkdir()
        review_file(tmp_path / name / "train.jsonl", 20 * number, 20)
    read(tmp_path)
    assert "de/train.jsonl and 1 other files seem to be in other languages" in capsys.readouterr().err
