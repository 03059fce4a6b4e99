"""The results in the README are those of measured/*.json, which the command wrote."""

import json

import numpy
import pytest

from eval.tasks.table2 import PAPER
from tests.helpers import REPOSITORY

FOLDER = REPOSITORY / "eval" / "reproduce" / "measured"
README = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())  # wherever its lines end
NAMES = ("demo", "french", "french-better-teacher", "french-variants", "french-longer")
DEMO, FRENCH, BETTER, VARIANTS, LONGER = (
    json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES
)
COLUMNS = DEMO, FRENCH, BETTER


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
    found = [results["statistics"]["variants"][variant][measure] for results in COLUMNS]
    assert_row(label, *map(of_seeds, found))
    assert all(each["seeds"] == [0, 1, 2] for each in found)


def test_scale_and_teachers():
    assert_row("each student read, in tokens", *(f"{results['scale']['tokens']:,}" for results in COLUMNS))
    teachers = [f"{100 * results['teacher']['accuracy']['value']:.2f}" for results in COLUMNS]
    assert_row("the teacher predicts", *teachers)
    sizes = [[results["scale"][f"{model}_layers"] for model in ("teacher", "student")] for results in COLUMNS]
    assert sizes == [[6, 3]] * 3 and "teachers of 6 layers, whose students have 3" in README
    widths = [results["scale"]["hidden_size"] for results in COLUMNS]
    read = "", ", on 9 million tokens", ", on 42 million tokens"  # by camembert-mini's README, and 4,000 steps more
    assert_row("hidden size, and the teacher's pre-training", *(f"{width}{text}" for width, text in zip(widths, read)))


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


def accuracy(results, variant):
    """In the form of the README, of all three seeds unless it says which."""
    found = results["statistics"]["variants"][variant]["accuracy"]
    return of_seeds(found) + ("" if found["seeds"] == [0, 1, 2] else " (seeds 0 and 1)")


def kept(results):
    found = results["statistics"]["variants"]["paper"]["kept"]
    return [f"{100 * found[name]:.1f}" for name in ("mean", "low", "high")]


def test_the_other_variants():
    as_teacher = of_seeds(VARIANTS["statistics"]["variants"]["first-half"]["agreement"])
    for text in (
        f"9 million tokens, students predict {accuracy(VARIANTS, 'first-half')} and make its guess {as_teacher} % of",
        f"of the better teacher they predict {accuracy(BETTER, 'first-half')}.",
        f"In the demo these layers are the worst choice: {accuracy(DEMO, 'first-half')}.",
        f"after {VARIANTS['scale']['tokens']:,} tokens: {accuracy(VARIANTS, 'paper')} with all three, "
        f"{accuracy(VARIANTS, 'no-cosine')} without the cosine term; {accuracy(VARIANTS, 'no-soft-labels')} without "
        f"the soft labels, but with the better teacher {accuracy(BETTER, 'no-soft-labels')} against "
        f"{accuracy(BETTER, 'paper')}.",
        f"of 40, students predict {accuracy(DEMO, 'masking-15')} instead of {accuracy(DEMO, 'paper')}.",
    ):
        assert text in README
    layers = ("paper", "last-half", "first-half", "both-ends")
    means = {name: DEMO["statistics"]["variants"][name]["accuracy"]["mean"] for name in layers}
    assert min(means, key=means.get) == "first-half"
    assert VARIANTS["teacher"]["weights"] == LONGER["teacher"]["weights"]


def test_the_text():
    change = interval(BETTER["statistics"]["order"]["pairs"]["paper > mlm-only"]).removeprefix("+")
    assert f"distillation is worth: {change.replace(' ', ' points ', 1)} more than masked LM alone" in README
    assert BETTER["statistics"]["order"]["holds"]
    better = "with {} % of the teacher's accuracy (95 % interval over seeds {} to {})".format(*kept(BETTER))
    weaker = "end with {} % of its accuracy ({} to {})".format(*kept(FRENCH))
    change = interval(FRENCH["statistics"]["order"]["pairs"]["paper > mlm-only"]).replace(" ", " points ", 1)
    curves = [
        [numpy.interp(1e6, *zip(*run["curve"])) for run in FRENCH["variants"][name]["runs"]]
        for name in ("paper", "mlm-only")
    ]
    early = "{:.1f} against {:.1f} % on 256 blocks".format(*(100 * numpy.mean(each) for each in curves))
    longer = f"{accuracy(LONGER, 'paper')} against {accuracy(LONGER, 'mlm-only')} %"
    assert f"After {LONGER['scale']['tokens']:,} tokens distillation even holds them back, {longer}" in README
    assert better in README and weaker in README and f"the difference is {change}" in README and early in README
    of_tasks = interval(FRENCH["statistics"]["mean_of_tasks"]).removeprefix("+").replace(" ", " points ", 1)
    assert f"{of_tasks} above" in README
