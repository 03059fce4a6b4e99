"""From the results of `reproduce` to its statistics: per variant, between variants, and of the tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from numpy import ndarray

from data.cli import DataError

from ..tasks.bootstrap import difference
from ..tasks.table2 import MEASURES, PAPER
from .statistics import estimate, holm, over_text, paired, ratios

PAPERS_LOSS, MLM_ONLY, RANDOM = "paper", "mlm-only", "random"  # the variants of the main comparison
CHAIN = {PAPERS_LOSS: "distilled", MLM_ONLY: "masked LM alone", RANDOM: "random start"}
STUDENTS = (PAPERS_LOSS, MLM_ONLY)  # fine-tuned on the tasks


def summary(results: Mapping, folder: Path) -> dict:
    """The statistics of all results, as they go into results.json.  folder: where the files named by them lie.

    Raises DataError if the counts of a run are missing or do not fit.
    """
    runs = {name: {run["seed"]: run for run in each["runs"]} for name, each in results["variants"].items()}
    runs = {name: each for name, each in runs.items() if each}
    counts = read_counts(runs, folder)
    return {
        "variants": of_variants(runs, counts, results["teacher"]["accuracy"]["value"]),
        "order": order(runs, counts),
        "tasks": of_tasks(results["tasks"]),
        "mean_of_tasks": mean_difference(results["tasks"]),
    }


# ---- section 3 -------------------------------------------------------------------------------------------------

Runs = Mapping[str, Mapping[int, Mapping]]  # {variant: {seed: run}}
Counts = Mapping[str, Mapping[int, ndarray]]  # {variant: {seed: (blocks, 4)}}, {} for a variant without


def of_variants(runs: Runs, counts: Counts, teacher: float) -> dict[str, dict]:
    """{variant: accuracy, agreement, mlm_loss, kept as estimate() has them, over_text, difference}

    teacher: its accuracy, of which kept is a share; difference: accuracy_difference() from the paper's loss, with
    p_holm, None for the paper's loss itself or without common seeds.
    """
    found = {}
    for name, by_seed in runs.items():
        figures = {key: values_of(by_seed, key) for key in ("accuracy", "agreement", "mlm_loss")}
        figures["kept"] = ratios(figures["accuracy"], dict.fromkeys(by_seed, teacher))
        found[name] = {key: estimate(values) for key, values in figures.items()}
        found[name]["over_text"] = over_text(list(counts[name].values())) if counts[name] else None
        is_other = name != PAPERS_LOSS and PAPERS_LOSS in runs
        found[name]["difference"] = accuracy_difference(name, PAPERS_LOSS, runs, counts) if is_other else None
    changes = {name: each["difference"] for name, each in found.items() if each["difference"]}
    adjusted = holm({name: change["p"] for name, change in changes.items() if change["p"] is not None})
    for name, change in changes.items():
        change["p_holm"] = adjusted.get(name)
    return found


def accuracy_difference(name: str, other: str, runs: Runs, counts: Counts) -> dict | None:
    """paired() of a variant's accuracy − another's, and over_text: of the same seeds, with the paired interval."""
    change = paired(values_of(runs[name], "accuracy"), values_of(runs[other], "accuracy"))
    if change is None:
        return None
    if not counts[name] or not counts[other]:
        return change | {"over_text": None}
    ours, others = (over_text([counts[each][seed] for seed in change["seeds"]]) for each in (name, other))
    return change | {"over_text": difference(ours["accuracy"], others["accuracy"])}


def order(runs: Runs, counts: Counts) -> dict:
    """Whether distilled > masked LM alone > random start: {"holds": true, false or, if not known, null, "pairs"}

    pairs: of each two neighbours {"state"} and accuracy_difference(). It holds if both are "clear": the mean is higher,
    the 95 % intervals over seeds do not overlap, and that of the difference over text leaves out 0.
    """
    pairs = {}
    for above, below in zip(list(CHAIN), list(CHAIN)[1:]):
        there = above in runs and below in runs
        change = accuracy_difference(above, below, runs, counts) if there else None
        means = [estimate(values_of(runs.get(name, {}), "accuracy")) for name in (above, below)]
        pairs[f"{above} > {below}"] = {"state": state(*means, change)} | (change or {})
    states = {pair["state"] for pair in pairs.values()}
    if states <= {"clear", "missing", "one seed"}:
        return {"holds": True if states == {"clear"} else None, "pairs": pairs}
    return {"holds": False, "pairs": pairs}


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
    found, masked = {}, None
    for name, by_seed in runs.items():
        complete = all("counts" in run for run in by_seed.values())
        paths = {seed: folder / run["counts"] for seed, run in by_seed.items()} if complete else {}
        found[name] = {seed: read_array(path) for seed, path in paths.items()}
        for seed, counts in found[name].items():
            masked = counts[:, 0] if masked is None else masked
            if not numpy.array_equal(counts[:, 0], masked):
                raise DataError(f"{paths[seed]} was counted on other text or masks than the other runs. Remove it.")
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
            teacher, *students = (by_model.get(name, {}) for name in ("teacher", *STUDENTS))
            row["kept"] = {name: estimate(ratios(each, teacher)) for name, each in zip(STUDENTS, students)}
            found[task][measure] = row | {"difference": paired(*students)}
    return found


def values_of_measure(runs: Sequence[Mapping], measure: str) -> dict[int, float]:
    return {run["seed"]: run["test"][measure]["value"] for run in runs if measure in run["test"]}


def mean_difference(tasks: Mapping[str, Mapping]) -> dict | None:
    """The difference in the mean over the tasks, each by the paper's measure, on the seeds that all tasks have."""
    measures = {task: measure for task, measure in PAPER if task in tasks}
    means = []
    for name in STUDENTS:
        values = [values_of_measure(tasks[task]["models"].get(name, ()), each) for task, each in measures.items()]
        seeds = set.intersection(*map(set, values)) if values else set()
        means.append({seed: sum(each[seed] for each in values) / len(values) for seed in seeds})
    return paired(*means)
