"""Parts by the words of a path: whole words only, and no guess."""

import pytest

from data import DataError
from data.tasks.parts import in_other_languages, part_of, parts_of_files


@pytest.mark.parametrize(
    "part, paths",
    [
        ("train", "train.tsv training.jsonl.gz TRAIN_text.txt fquad_train_v1.json train/data.jsonl Train.parquet"),
        ("dev", "dev_matched"),
        ("train", "train-00000-of-00002.parquet trainset.json piafTrain.json apprentissage/a.tsv"),
        (
            "dev",
            "sick-fr.trial.tsv xnli.fr.dev.tsv validation.json val_text.txt valid/1.txt devset.json eng.testa",
        ),
        (
            "test",
            "TEST_text.txt xnli.fr.test.tsv test/data.jsonl testSet.csv XNLITest.tsv tests/a.jsonl eng.testb",
        ),
        (
            None,
            "testimonials.tsv valeurs.tsv piaf-v1.0.json latest.tsv trainer.txt developers.txt",
        ),
        (None, "contest.tsv attested.txt protest.jsonl validated.tsv trains.tsv"),
    ],
)
def test_whole_words(part, paths):
    assert [part_of(path, path) for path in paths.split(" ")] == [part] * (paths.count(" ") + 1)


@pytest.mark.parametrize(
    "path", ["train/dev.jsonl", "test/train.tsv", "train_test.tsv", "train-dev/a.jsonl", "train/eval.json"]
)
def test_words_for_two_parts(path):
    with pytest.raises(DataError, match=r"^here has the words \w+ and \w+\. Leave one word that says what it is"):
        part_of(path, "here")


@pytest.mark.parametrize(
    "path", ["eval.jsonl", "evaluation/a.tsv", "held-out/heldout.tsv", "évaluation.csv", "devtest.tsv"]
)
def test_words_that_may_mean_dev_or_test(path):
    with pytest.raises(DataError, match="which may mean dev or test"):
        part_of(path, "here")
    assert part_of(f"test/{path}", "here") == "test" and part_of(f"dev/{path}", "here") == "dev"


def test_accents_in_both_forms():
    assert part_of("entraînement.csv", "") == part_of("entrai\u0302nement.csv", "") == "train"


def test_files_of_a_folder():
    assert parts_of_files("d", ["a.tsv", "testimonials.tsv"]) == {"a.tsv": None, "testimonials.tsv": None}
    assert parts_of_files("d", ["train/a.tsv", "test/a.tsv"]) == {"train/a.tsv": "train", "test/a.tsv": "test"}
    with pytest.raises(DataError, match=r"^d: valeurs.tsv does not say whether it is for .* as train.tsv does"):
        parts_of_files("d", ["train.tsv", "valeurs.tsv"])


@pytest.mark.parametrize("path", ["RÉTEST.csv", "détester_TÉLÉVAL.tsv", "CONTRÔLETRAIN", "ÀDEV.txt"])
def test_capitals_with_accents_are_part_of_a_word(path):
    assert part_of(path, "") is None


def test_files_in_other_languages():
    names = ["de/train.tsv", "fr/train.tsv", "xnli.en.test.tsv", "xnli.fr.test.tsv", "jeu_de_test_fr.tsv", "dev.tsv"]
    assert in_other_languages(names) == ["de/train.tsv", "xnli.en.test.tsv"]
    assert in_other_languages(["jeu_de_test.tsv", "en_vrac_train.tsv"]) == []
