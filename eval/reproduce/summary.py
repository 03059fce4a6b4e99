"""From the results of `reproduce` to its statistics: per variant, between variants, and of the tasks."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from numpy import ndarray

from data.cli import DataError

from ..tasks.bootstrap import Metric, difference
from ..tasks.table2 import MEASURES, PAPER
from .statistics import estimate, holm, over_text, paired, ratios
from .variants import FINE_TUNED, MAIN, MLM_ONLY, RANDOM, TEACHER
from .variants import PAPER as PAPERS_LOSS

LABELS = {PAPERS_LOSS: "distilled", MLM_ONLY: "masked LM alone", RANDOM: "random start"}
Runs = Mapping[str, Mapping[int, Mapping]]  # {variant: {seed: run}}
Text = Mapping[tuple[str, tuple[int, ...]], Mapping[str, Metric]]  # {(variant, seeds): as over_text() has it}


def summary(results: Mapping, folder: Path) -> dict:
    """The statistics of all results, as they go into results.json.  folder: where the files named by them lie.

    Raises DataError if the counts of a run are missing or do not fit.
    """
    runs = {name: {run["seed"]: run for run in each["runs"]} for name, each in results["variants"].items()}
    runs = {name: each for name, each in runs.items() if each}
    text = of_text(runs, read_counts(runs, folder))
    return {
        "variants": of_variants(runs, text, results["teacher"]),
        "order": order(runs, text),
        "tasks": of_tasks(results["tasks"]),
        "mean_of_tasks": mean_difference(results["tasks"]),
    }


# ---- section 3 -------------------------------------------------------------------------------------------------


def of_text(runs: Runs, counts: Mapping[str, Mapping[int, ndarray]]) -> Text:
    """Of each variant over all its seeds, and over those that are paired with another's."""
    keys = {(name, tuple(sorted(runs[name]))) for name in runs}
    for name, other in (*((name, PAPERS_LOSS) for name in runs), *itertools.pairwise(MAIN)):
        if shared := tuple(sorted(runs.get(name, {}).keys() & runs.get(other, {}).keys())):
            keys |= {(name, shared), (other, shared)}
    groups = {(name, seeds): [counts[name][seed] for seed in seeds] for name, seeds in sorted(keys) if counts[name]}
    return over_text(groups)


def of_variants(runs: Runs, text: Text, teacher: Mapping) -> dict[str, dict]:
    """{variant: accuracy, agreement, mlm_loss, kept as estimate() has them, over_text, difference}

    kept: of the teacher's accuracy; difference: accuracy_difference() from the paper's loss, with p_holm, None for the
    paper's loss itself or without common seeds.
    """
    found = {}
    for name, by_seed in runs.items():
        figures = {key: values_of(by_seed, key) for key in ("accuracy", "agreement", "mlm_loss")}
        figures["kept"] = ratios(figures["accuracy"], dict.fromkeys(by_seed, teacher["accuracy"]["value"]))
        found[name] = {key: estimate(values) for key, values in figures.items()}
        found[name]["over_text"] = text.get((name, tuple(sorted(by_seed))))
        is_other = name != PAPERS_LOSS and PAPERS_LOSS in runs
        found[name]["difference"] = accuracy_difference(name, PAPERS_LOSS, runs, text) if is_other else None
    changes = {name: each["difference"] for name, each in found.items() if each["difference"]}
    adjusted = holm({name: change["p"] for name, change in changes.items() if change["p"] is not None})
    for name, change in changes.items():
        change["p_holm"] = adjusted.get(name)
    return found


def accuracy_difference(name: str, other: str, runs: Runs, text: Text) -> dict | None:
    """paired() of a variant's accuracy − another's, and over_text: of the same seeds, with the paired interval."""
    change = paired(values_of(runs[name], "accuracy"), values_of(runs[other], "accuracy"))
    if change is None:
        return None
    both = [text.get((each, tuple(change["seeds"]))) for each in (name, other)]
    return change | {"over_text": difference(both[0]["accuracy"], both[1]["accuracy"]) if all(both) else None}


def order(runs: Runs, text: Text) -> dict:
    """Whether distilled > masked LM alone > random start: {"holds": true, false or, if not shown, null, "pairs"}

    pairs: of each two neighbours {"state"} and accuracy_difference(). It holds if both are "clear": the mean is higher,
    the 95 % intervals over seeds do not overlap, and that of the difference over text leaves out 0. It does not if a
    mean is not higher.
    """
    pairs = {}
    for above, below in itertools.pairwise(MAIN):
        there = above in runs and below in runs
        change = accuracy_difference(above, below, runs, text) if there else None
        means = [estimate(values_of(runs.get(name, {}), "accuracy")) for name in (above, below)]
        pairs[f"{above} > {below}"] = {"state": state(*means, change)} | (change or {})
    states = [pair["state"] for pair in pairs.values()]
    holds = False if "not higher" in states else True if set(states) == {"clear"} else None
    return {"holds": holds, "pairs": pairs}


def state(above: Mapping | None, below: Mapping | None, change: Mapping | None) -> str:
    """missing, not higher, one seed, overlap, not clear over text, or clear"""
    if above is None or below is None:
        return "missing"
    if above["mean"] <= below["mean"]:
        return "not higher"
    if above["low"] is None or below["low"] is None:
        return "one seed"
    if above["low"] <= below["high"]:
        return "overlap"
    text = change and change["over_text"]
    return "not clear over text" if text and text["low"] is not None and text["low"] <= 0 else "clear"


def values_of(runs: Mapping[int, Mapping], key: str) -> dict[int, float]:
    return {seed: run[key] for seed, run in runs.items()}


def read_counts(runs: Runs, folder: Path) -> dict[str, dict[int, ndarray]]:
    """{} for a variant of which a run names no file.  Raises DataError."""
    found, same = {}, None
    for name, by_seed in runs.items():
        complete = all("counts" in run for run in by_seed.values())
        paths = {seed: folder / run["counts"] for seed, run in by_seed.items()} if complete else {}
        found[name] = {seed: read_array(path) for seed, path in paths.items()}
        for seed, counts in found[name].items():
            of_all = counts[:, [0, 3]]  # the masked tokens, and where the teacher is right
            same = of_all if same is None else same
            if not numpy.array_equal(of_all, same):
                what = "was counted on other text or masks than the other runs, or with another teacher"
                raise DataError(f"{paths[seed]} {what}. Remove the folder of this run, and start again.")
    return found


def read_array(path: Path) -> ndarray:
    """Raises DataError."""
    try:
        counts = numpy.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}. Remove the folder of this run, and start again.") from None
    if not isinstance(counts, ndarray) or counts.ndim != 2 or counts.shape[1] != 4:
        raise DataError(f"{path} does not hold four counts per block. Remove the folder of this run, and start again.")
    return counts


# ---- section 4 -------------------------------------------------------------------------------------------------


def of_tasks(tasks: Mapping[str, Mapping]) -> dict:
    """{task: {measure: the models' estimate(), kept, difference}}

    kept: of the teacher's value, per student, on the same seeds; difference: the distilled student − the one by
    masked LM alone, as paired() has it.
    """
    found: dict[str, dict] = {}
    for task, result in tasks.items():
        found[task] = {}
        for measure in MEASURES[task]:
            by_model = {name: values_of_measure(runs, measure) for name, runs in result["models"].items()}
            row = {name: estimate(values) for name, values in by_model.items()}
            teacher, *students = (by_model.get(name, {}) for name in (TEACHER, *FINE_TUNED))
            row["kept"] = {name: estimate(ratios(each, teacher)) for name, each in zip(FINE_TUNED, students)}
            found[task][measure] = row | {"difference": paired(*students)}
    return found


def values_of_measure(runs: Sequence[Mapping], measure: str) -> dict[int, float]:
    return {run["seed"]: run["test"][measure]["value"] for run in runs if measure in run["test"]}


def mean_difference(tasks: Mapping[str, Mapping]) -> dict | None:
    """paired() of the means over the tasks, each by the paper's measure, and "tasks": those that both students have.

    On the seeds that all these tasks have.
    """
    by_task = {}
    for task, measure in PAPER:
        models = tasks[task]["models"] if task in tasks else {}
        values = [values_of_measure(models.get(name, ()), measure) for name in FINE_TUNED]
        if values[0].keys() & values[1].keys():
            by_task[task] = values
    means = []
    for values in zip(*by_task.values()):  # of each student, over the tasks
        seeds = set.intersection(*map(set, values))
        means.append({seed: sum(each[seed] for each in values) / len(values) for seed in seeds})
    found = paired(*means) if means else None
    return found and found | {"tasks": list(by_task)}
