"""The results in the README are those of measured/*.json, which the command wrote."""

import json

import numpy
import pytest

from eval.tasks.table2 import PAPER
from tests.helpers import REPOSITORY

FOLDER = REPOSITORY / "eval" / "reproduce" / "measured"
README = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())  # wherever its lines end
NAMES = ("demo", "french", "french-variants")
DEMO, FRENCH, VARIANTS = (json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES)


def of_seeds(estimated):
    return f"{100 * estimated['mean']:.2f} ± {100 * estimated['deviation']:.2f}"


def interval(estimated):
    text = f"{100 * estimated['mean']:+.2f} [{100 * estimated['low']:+.2f}, {100 * estimated['high']:+.2f}]"
    return text.replace("-", "−")


def assert_row(*cells):
    assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in README


def speed_up(results, model):
    ratios = [times["teacher"] / times[model] for times in (each["milliseconds"] for each in results["tasks"].values())]
    return f"× {min(ratios):.2f} to {max(ratios):.2f}"


@pytest.mark.parametrize(
    ("label", "variant", "measure"),
    [
        ("distilled students, from its layers, predict", "paper", "accuracy"),
        ("students of masked LM alone, from its layers", "mlm-only", "accuracy"),
        ("students of masked LM alone, from random numbers", "random", "accuracy"),
        ("distilled students make the teacher's guess", "paper", "agreement"),
        ("those of masked LM alone, from its layers", "mlm-only", "agreement"),
    ],
)
def test_held_out(label, variant, measure):
    found = [results["statistics"]["variants"][variant][measure] for results in (DEMO, FRENCH)]
    assert_row(label, *map(of_seeds, found))
    assert all(each["seeds"] == [0, 1, 2] for each in found)


def test_scale_and_teachers():
    assert_row("each student read, in tokens", *(f"{results['scale']['tokens']:,}" for results in (DEMO, FRENCH)))
    teachers = [f"{100 * results['teacher']['accuracy']['value']:.2f}" for results in (DEMO, FRENCH)]
    assert_row("the teacher predicts", *teachers)
    sizes = [[results["scale"][f"{model}_layers"] for model in ("teacher", "student")] for results in (DEMO, FRENCH)]
    assert sizes == [[6, 3], [6, 3]] and "teachers of 6 layers, whose students have 3" in README


@pytest.mark.parametrize(
    ("name", "results"), [("real French, other data", FRENCH), ("the demo's invented world", DEMO)]
)
def test_tasks(name, results):
    of_tasks = [results["statistics"]["tasks"][task][measure] for task, measure in PAPER]
    assert_row(name, "its teacher", "× 1", *(of_seeds(each["teacher"]) for each in of_tasks))
    assert_row("", "distilled", speed_up(results, "student"), *(of_seeds(each["paper"]) for each in of_tasks))


def test_masked_lm_alone_and_int8():
    of_tasks = [FRENCH["statistics"]["tasks"][task][measure] for task, measure in PAPER]
    assert_row("", "masked LM alone", "as above", *(of_seeds(each["mlm-only"]) for each in of_tasks))
    pairs = [FRENCH["tasks"][task]["int8"][measure] for task, measure in PAPER]
    cells = [f"{100 * int8:.2f} ({100 * (int8 - full):+.2f})".replace("-", "−") for full, int8 in pairs]
    assert_row("", "distilled, int8 (difference from fp32)", speed_up(FRENCH, "student, int8"), *cells)
    baselines = [100 * FRENCH["tasks"][task]["baseline"][measure] for task, measure in PAPER]
    assert "without a model {:.2f}, {:.0f}, {:.2f} and {:.2f}".format(*baselines) in README


def test_the_other_variants():
    found = {name: each["accuracy"] for name, each in VARIANTS["statistics"]["variants"].items()}
    assert all(each["seeds"] == [0, 1] for each in found.values())
    assert f"on real French ({VARIANTS['scale']['tokens']:,} tokens, seeds 0 and 1)" in README
    for name, text in (
        ("paper", "the paper's loss predicts {} %"),
        ("no-cosine", "without the cosine term {},"),
        ("no-soft-labels", "without the soft labels {},"),
        ("masking-15", "masked instead of 40 {}."),
        ("first-half", "From layers 0, 1, 2 of this teacher instead of 0, 2, 4 it is {};"),
    ):
        assert text.format(of_seeds(found[name])) in README
    of_demo = DEMO["statistics"]["variants"]
    assert f"worst choice, {of_seeds(of_demo['first-half']['accuracy'])}." in README


def test_the_text():
    statistics = FRENCH["statistics"]
    kept = [f"{100 * statistics['variants']['paper']['kept'][name]:.1f}" for name in ("mean", "low", "high")]
    assert "with {} % of the teacher's accuracy (95 % interval over seeds {} to {})".format(*kept) in README
    assert (
        f"{interval(statistics['order']['pairs']['paper > mlm-only']).replace(' ', ' points ', 1)} over seeds" in README
    )
    assert f"{interval(statistics['mean_of_tasks']).removeprefix('+').replace(' ', ' points ', 1)} above" in README
    curves = [
        [numpy.interp(1e6, *zip(*run["curve"])) for run in FRENCH["variants"][name]["runs"]]
        for name in ("paper", "mlm-only")
    ]
    assert "{:.1f} against {:.1f} % on 256 blocks".format(*(100 * numpy.mean(each) for each in curves)) in README
