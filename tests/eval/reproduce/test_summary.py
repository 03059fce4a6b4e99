"""From results to statistics: on made-up results with everything, with little, and with damaged files."""

import json

import numpy
import pytest

from data.cli import DataError
from eval.reproduce.summary import summary
from tests.eval.reproduce.shared import BLOCKS, MASKED, VARIANTS, made_up


def test_of_every_variant(tmp_path):
    results = made_up(tmp_path)
    found = summary(results, tmp_path)
    json.dumps(found)
    assert list(found["variants"]) == list(VARIANTS)
    for name, statistics in found["variants"].items():
        runs = results["variants"][name]["runs"]
        mean = sum(run["accuracy"] for run in runs) / 3
        assert statistics["accuracy"]["seeds"] == [0, 1, 2]
        assert statistics["accuracy"]["mean"] == pytest.approx(mean)
        assert statistics["kept"]["mean"] == pytest.approx(mean / 0.75)
        assert statistics["over_text"]["accuracy"]["value"] == pytest.approx(mean)
        assert statistics["over_text"]["kept"]["value"] == pytest.approx(mean / 0.75)
        assert statistics["mlm_loss"]["mean"] == pytest.approx(2 - mean)
    assert found["variants"]["paper"]["difference"] is None
    change = found["variants"]["teacher-student-T2"]["difference"]
    assert 100 * change["mean"] == pytest.approx(70.40 - 69.85)
    assert change["over_text"]["value"] == pytest.approx(change["mean"])
    assert change["p"] < change["p_holm"] <= 12 * change["p"]


def test_differences_are_on_common_seeds(tmp_path):
    results = made_up(tmp_path, variants=("paper", "no-cosine", "average"))
    results["variants"]["no-cosine"]["runs"].pop(0)
    results["variants"]["average"]["runs"][:] = results["variants"]["average"]["runs"][2:]
    papers = results["variants"]["paper"]["runs"]
    papers[0]["accuracy"] = 0.1  # of a seed that the others do not have
    found = summary(results, tmp_path)["variants"]
    assert found["no-cosine"]["difference"]["seeds"] == [1, 2]
    expected = [
        run["accuracy"] - paper["accuracy"] for run, paper in zip(results["variants"]["no-cosine"]["runs"], papers[1:])
    ]
    assert found["no-cosine"]["difference"]["mean"] == pytest.approx(sum(expected) / 2)
    assert found["no-cosine"]["difference"]["over_text"]["value"] == pytest.approx(sum(expected) / 2)
    last = found["average"]["difference"]
    assert last["seeds"] == [2] and last["p"] is last["p_holm"] is last["low"] is None
    papers.pop(2)
    assert summary(results, tmp_path)["variants"]["average"]["difference"] is None


def test_with_almost_nothing(tmp_path):
    results = made_up(tmp_path, seeds=1, variants=("mlm-only",), tasks=())
    del results["variants"]["mlm-only"]["runs"][0]["counts"]
    results["variants"]["paper"] = {"about": "the paper's loss", "runs": []}
    found = summary(results, tmp_path)
    assert list(found["variants"]) == ["mlm-only"] and found["variants"]["mlm-only"]["over_text"] is None
    assert found["order"]["holds"] is None and found["tasks"] == {} and found["mean_of_tasks"] is None
    results["variants"] = {}
    assert summary(results, tmp_path)["variants"] == {}


def main_variants(folder, accuracies):
    """Results with these accuracies of each seed, and nothing that depends on the text."""
    results = made_up(folder, seeds=0, variants=tuple(accuracies), tasks=())
    for name, values in accuracies.items():
        run = {"agreement": 0.5, "mlm_loss": 2.0}
        results["variants"][name]["runs"] = [run | {"seed": i, "accuracy": value} for i, value in enumerate(values)]
    return results


CLEAR = {"paper": [0.5, 0.51, 0.5], "mlm-only": [0.4, 0.41, 0.4], "random": [0.3, 0.31, 0.3]}


@pytest.mark.parametrize(
    "changed, holds, states",
    [
        ({}, True, ["clear", "clear"]),
        ({"paper": [0.38, 0.4, 0.4]}, False, ["not higher", "clear"]),
        ({"random": [0.3, 0.39, 0.33]}, None, ["clear", "overlap"]),
        ({"random": [0.3]}, None, ["clear", "one seed"]),
        ({"random": []}, None, ["clear", "missing"]),
        ({"random": [], "paper": [0.3]}, False, ["not higher", "missing"]),
    ],
)
def test_the_order_of_the_main_variants(tmp_path, changed, holds, states):
    found = summary(main_variants(tmp_path, CLEAR | changed), tmp_path)["order"]
    assert found["holds"] is holds and [pair["state"] for pair in found["pairs"].values()] == states


def test_an_order_that_other_text_may_change(tmp_path):
    """The better model is right on one block more of three, in every seed."""
    results = main_variants(tmp_path, CLEAR)
    for name, blocks in {"paper": [9, 5, 5], "mlm-only": [5, 5, 5], "random": [1, 2, 1]}.items():
        for run in results["variants"][name]["runs"]:
            run["counts"] = f"{name}.npy"
            numpy.save(tmp_path / run["counts"], [[10, right, right, 9] for right in blocks])
    found = summary(results, tmp_path)["order"]
    assert found["holds"] is None
    assert [pair["state"] for pair in found["pairs"].values()] == ["not clear over text", "clear"]


@pytest.mark.parametrize(
    "damage, sentence",
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda path: path.write_bytes(b"cos\nsystem\n(S'true'\ntR."), "cannot be read"),
        (lambda path: numpy.save(path, numpy.ones((BLOCKS, 3))), "four counts per block"),
        (lambda path: numpy.save(path, numpy.full((BLOCKS, 4), MASKED + 1)), "other text or masks"),
        (lambda path: numpy.save(path, numpy.full((BLOCKS + 1, 4), MASKED)), "other text or masks"),
        (lambda path: numpy.save(path, numpy.load(path) + [0, 0, 0, 1]), "another teacher"),
    ],
)
def test_damaged_counts(tmp_path, damage, sentence):
    results = made_up(tmp_path, variants=("paper", "random"), tasks=())
    damage(tmp_path / "runs/random-1/counts.npy")
    with pytest.raises(DataError, match=rf"random-1/counts\.npy .*{sentence}"):
        summary(results, tmp_path)


def test_of_the_tasks(tmp_path):
    results = made_up(tmp_path, variants=())
    found = summary(results, tmp_path)
    row = found["tasks"]["qa"]["f1"]
    assert row["paper"]["mean"] == pytest.approx(0.71) and row["teacher"]["deviation"] == pytest.approx(0.01)
    assert row["kept"]["paper"]["mean"] == pytest.approx((70 / 80 + 71 / 81 + 72 / 82) / 3)
    assert row["difference"]["mean"] == pytest.approx(0.06) == found["mean_of_tasks"]["mean"]
    assert row["difference"]["low"] == pytest.approx(0.06 - 0.01 * 4.302653 / 3**0.5)
    results["tasks"]["qa"]["models"]["paper"] = results["tasks"]["qa"]["models"]["paper"][1:]
    found = summary(results, tmp_path)
    assert found["mean_of_tasks"]["tasks"] == ["sentiment", "ner", "nli", "qa"]
    assert found["mean_of_tasks"]["seeds"] == [1, 2]  # which all four tasks have
    assert found["tasks"]["ner"]["overlap_f1"]["difference"]["seeds"] == [0, 1, 2]
    del results["tasks"]["qa"]["models"]["mlm-only"]
    found = summary(results, tmp_path)
    assert found["mean_of_tasks"]["tasks"] == ["sentiment", "ner", "nli"]
    assert found["mean_of_tasks"]["seeds"] == [0, 1, 2]
    assert found["tasks"]["qa"]["f1"]["difference"] is found["tasks"]["qa"]["f1"]["kept"]["mlm-only"] is None
