"""Student's t, estimates and paired tests against SciPy, Holm's adjustment by hand, intervals over blocks."""

import math

import numpy
import pytest
from scipy import stats

from eval.reproduce.statistics import central_probability, critical_value, estimate, holm, over_text, paired, ratios
from eval.tasks.bootstrap import difference

VALUES, OTHERS = {0: 0.345, 1: 0.351, 2: 0.339, 5: 0.36}, {5: 0.34, 0: 0.33, 1: 0.349, 2: 0.341, 7: 0.9}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30])
def test_students_t_is_scipys(freedom):
    for t in (0.0, 0.1, 1.0, 2.5, 4.3, 40.0):
        expected = 1 - 2 * stats.t.sf(t, freedom)
        assert central_probability(t, freedom) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert critical_value(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-10)
    assert critical_value(freedom, 0.5) == pytest.approx(stats.t.ppf(0.75, freedom), rel=1e-10)


def test_an_estimate_by_hand():
    found = estimate({2: 3.0, 0: 1.0, 1: 2.0})
    half = 4.302652729749464 / math.sqrt(3)  # the t of two degrees of freedom in every table, 4.303
    assert found == {
        "seeds": [0, 1, 2],
        "mean": 2.0,
        "deviation": 1.0,
        "low": pytest.approx(2 - half),
        "high": pytest.approx(2 + half),
    }
    assert estimate({4: 0.5}) == {"seeds": [4], "mean": 0.5, "deviation": None, "low": None, "high": None}
    assert estimate({}) is None


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2), (0, 1, 2, 5)])
def test_estimates_and_paired_tests_are_scipys(seeds):
    values, others = [[each[seed] for seed in seeds] for each in (VALUES, OTHERS)]
    found = estimate(dict(zip(seeds, values)))
    expected = stats.t.interval(0.95, len(seeds) - 1, numpy.mean(values), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx(expected)
    assert found["deviation"] == pytest.approx(numpy.std(values, ddof=1))
    found, expected = paired(dict(zip(seeds, values)), dict(zip(seeds, others))), stats.ttest_rel(values, others)
    assert found["p"] == pytest.approx(expected.pvalue)
    assert found["mean"] == pytest.approx(numpy.mean(values) - numpy.mean(others))
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_only_the_seeds_that_both_have_are_paired():
    assert paired(VALUES, OTHERS)["seeds"] == [0, 1, 2, 5]
    one = paired({0: 0.5, 1: 0.6}, {1: 0.4, 2: 0.1})
    assert one == {"seeds": [1], "mean": pytest.approx(0.2), "deviation": None, "low": None, "high": None, "p": None}
    assert paired({0: 0.5}, {1: 0.4}) is None and paired({}, {}) is None
    assert ratios({0: 0.5, 1: 0.6, 2: 0.1}, {1: 0.8, 2: 0.0, 3: 1.0}) == {1: pytest.approx(0.75), 2: 0.0}


def test_differences_without_any_deviation():
    assert paired({0: 0.5, 1: 0.25}, {0: 0.5, 1: 0.25})["p"] == 1.0
    assert paired({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.25})["p"] == 0.0


def test_holms_adjustment():
    """3 × 0.01, then 2 × 0.03, then the larger of 1 × 0.04 and the one before."""
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"b": 0.03, "c": 0.06, "a": 0.06})
    assert holm({"a": 0.7, "b": 0.6}) == {"b": 1.0, "a": 1.0} and holm({}) == {}


def counts(right, agreed, teacher_right, masked=20):
    return numpy.stack([numpy.full(len(right), masked), right, agreed, teacher_right], axis=1)


def test_over_text():
    random = numpy.random.default_rng(3)
    teacher, first, second = random.binomial(20, [[0.6], [0.5], [0.4]], (3, 400))
    both = [counts(first, first + 1, teacher), counts(second, second, teacher)]
    found = over_text({"other": both[:1], "both": both})["both"]
    mean = (first + second) / 2
    values = mean / 20, (mean + 0.5) / 20
    for name, value in zip(("accuracy", "agreement"), values):
        half = 1.96 * value.std(ddof=1) / 20  # √400
        expected = [value.mean(), value.mean() - half, value.mean() + half]
        assert list(found[name].values()) == pytest.approx(expected, abs=0.1 * half)
    kept = mean.sum() / teacher.sum()  # of a ratio, by the delta method
    half = 1.96 * (mean - kept * teacher).std(ddof=1) / 20 / teacher.mean()
    assert list(found["kept"].values()) == pytest.approx([kept, kept - half, kept + half], abs=0.1 * half)


def test_a_difference_over_text_is_paired():
    right = numpy.random.default_rng(4).binomial(18, 0.5, 40)
    found = over_text({"one": [counts(right + 1, right, right)], "other": [counts(right, right, right)]})
    one, other = found["one"], found["other"]
    assert one["accuracy"]["low"] < other["accuracy"]["high"]
    assert list(difference(one["accuracy"], other["accuracy"]).values()) == pytest.approx([0.05] * 3)
    assert over_text({}) == {}
