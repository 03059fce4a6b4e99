"""report.md: what was run at which scale, the tables of sections 2 to 4, what was not done, the commands."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

from data.cli import count

from ..benchmarks.harness import table
from ..tasks.table2 import CARDS, PAPER, PAPER_SPEED_UP, published
from .summary import LABELS
from .variants import FINE_TUNED, TEACHER

NONE = "–"
PICTURES = {"accuracy.png": "held-out accuracy", "table2.png": "Table 2", "speed.png": "accuracy against speed"}
WHOLE_WORDS = dict(break_long_words=False, break_on_hyphens=False)
STATES = {  # of two neighbours in the order that is expected
    "clear": "yes",
    "overlap": "higher in the mean, but the intervals over seeds overlap",
    "not clear over text": "higher over seeds, but on other text it may not be",
    "one seed": "higher, but one seed gives no interval",
    "not higher": "no, it is not higher",
    "missing": "not measured",
}
STATISTICS = (
    "± is the standard deviation over the seeds. Intervals are 95 %: over seeds by Student's t (what other seeds would "
    "give), over text by bootstrap of the held-out blocks (what other text would give); those of differences are "
    "paired. With two or three seeds, t intervals are wide and p-values coarse: a difference that is not significant "
    "is not shown to be none. p is that of the two-sided paired t-test. As many variants are compared with one, go by "
    "Holm's p: of plain p-values, 5 of 100 are below 0.05 by chance alone."
)


def report(results: Mapping, statistics: Mapping, folder: Path) -> str:
    """-> Markdown, with the pictures that are in the folder.  statistics: summary(results, folder)"""
    parts = ["# The paper's distillation, reproduced", *scale(results), "## Section 2: parameters, equation (9)"]
    parts += [parameters(results), "## Section 3: the students on held-out text"]
    parts += section_3(results, statistics, folder)
    if results["tasks"]:
        parts += ["## Section 4: the tasks", *section_4(results, statistics, folder)]
    if results["not_done"]:
        parts += ["## Not done", "\n".join(f"- {line}" for line in results["not_done"])]
    return "\n\n".join([*map(wrapped, parts), "## Commands", *commands(results)]) + "\n"


def wrapped(part: str) -> str:
    """With lines of at most 120 characters, except a table's."""
    return "\n".join(
        line if line.startswith("|") else fill(line, 120, subsequent_indent="  " * line.startswith("- "), **WHOLE_WORDS)
        for line in part.split("\n")
    )


# ---- cells -----------------------------------------------------------------------------------------------------


def percent(estimated: Mapping | None) -> str:
    """Mean ± deviation."""
    if estimated is None:
        return NONE
    deviation = estimated["deviation"]
    return f"{100 * estimated['mean']:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def interval(metric: Mapping | None, sign: str = "") -> str:
    if metric is None or metric["low"] is None:
        return NONE
    return f"[{100 * metric['low']:{sign}.2f}, {100 * metric['high']:{sign}.2f}]"


def with_interval(metric: Mapping | None, sign: str = "") -> str:
    """Value or mean, with its interval if there is one."""
    if metric is None:
        return NONE
    value = f"{100 * metric.get('value', metric.get('mean')):{sign}.2f}"
    return value if metric["low"] is None else f"{value} {interval(metric, sign)}"


def probability(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def picture(name: str, folder: Path) -> list[str]:
    return [f"![{PICTURES[name]}]({name})"] if (folder / name).exists() else []


# ---- the sections ----------------------------------------------------------------------------------------------


def scale(results: Mapping) -> list[str]:
    about, versions = results["scale"], results["versions"]
    demo = (
        "**Teacher, text and tasks are the demo's invented world** (`data/demo/`): the figures show that the method "
        "works here, not what it achieves on French."
    )
    pretrained = ""
    if about["teacher_tokens"]:
        pretrained = f" (pre-trained here by masked LM on {about['teacher_tokens']:,} tokens)"
    lines = [
        f"- Teacher: `{about['teacher']}`{pretrained}, {about['teacher_layers']} layers; students: "
        f"{about['student_layers']} layers; width {about['hidden_size']}, vocabulary {about['vocab_size']:,}.",
        f"- Text: `{about['corpus']}`; {tokens_read(results)}.",
        f"- {results['date']}, {about['device']}, {about['precision'] or 'precision not known yet'}, "
        f"{about['processor']}; Python {versions['python']}, torch {versions['torch']}, commit "
        f"{versions.get('commit', 'unknown')}.",
    ]
    if about["held_out_blocks"]:
        lines.append(
            f"- Held out: {count(about['held_out_blocks'], 'block')}, {about['masked_tokens']:,} masked tokens, the "
            "same for all. Accuracy is the share of them whose most likely token is the original; agreement, the share "
            "where student and teacher predict the same token."
        )
    return [demo] * about["is_demo"] + ["\n".join(lines)]


def tokens_read(results: Mapping) -> str:
    planned = results["scale"]["tokens"]
    others = [
        f"`{name}`, seed {run['seed']}: {run['tokens']:,}"
        for name, each in results["variants"].items()
        for run in each["runs"]
        if run["tokens"] != planned
    ]
    exceptions = f", but {'; '.join(others)}" if others else ""
    return f"every student read {planned:,} tokens in {results['scale']['steps']:,} steps{exceptions}"


def parameters(results: Mapping) -> str:
    rows = []
    for name, layers in (("teacher", "teacher_layers"), ("student", "student_layers")):
        each = results["parameters"][name]
        difference = each["counted"] - each["equation_9"]
        cells = [f"{each['equation_9']:,}", f"{each['counted']:,}", "equal" if not difference else f"{difference:+,}"]
        rows.append([name, str(results["scale"][layers]), *cells])
    return table(["encoder", "layers", "equation (9)", "counted", "difference"], *rows)


def section_3(results: Mapping, statistics: Mapping, folder: Path) -> list[str]:
    variants, teacher, parts = statistics["variants"], results["teacher"], []
    if teacher:
        accuracy, loss = with_interval(teacher["accuracy"]), teacher["mlm_loss"]
        parts.append(f"The teacher's accuracy is {accuracy} % (interval over text), its MLM loss {loss:.3f}.")
    if not variants:
        return [*parts, "No student is trained yet."]
    parts += [verdict(variants, statistics["order"]), accuracies(results, variants)]
    if any(each["difference"] for each in variants.values()):
        parts += ["Differences to the paper's loss, in points of accuracy, on the same seeds:", differences(variants)]
    abouts = (f"- `{name}`: {results['variants'][name]['about']}" for name in variants)
    return [*parts, "\n".join(abouts), *picture("accuracy.png", folder), STATISTICS]


def accuracies(results: Mapping, variants: Mapping) -> str:
    head = ["variant", "seeds", "accuracy, %", "95 % over seeds", "95 % over text"]
    head += ["kept of the teacher's, %", "agreement, %", "MLM loss"]
    rows = []
    for name, each in variants.items():
        over_text = each["over_text"] or dict.fromkeys(("accuracy", "kept", "agreement"))
        pairs = (f"{percent(each[key])} {interval(over_text[key])}" for key in ("kept", "agreement"))
        cells = [interval(over_text["accuracy"]), *pairs, f"{each['mlm_loss']['mean']:.3f}"]
        seeds = ", ".join(map(str, each["accuracy"]["seeds"]))
        rows.append([f"`{name}`", seeds, percent(each["accuracy"]), interval(each["accuracy"]), *cells])
    return table(head, *rows)


def differences(variants: Mapping) -> str:
    head = ["variant", "seeds", "difference", "95 % over seeds", "95 % over text", "p", "Holm's p"]
    rows = []
    for name, change in ((name, each["difference"]) for name, each in variants.items() if each["difference"]):
        text = interval(change["over_text"], "+")
        tests = [probability(change["p"]), probability(change["p_holm"])]
        mean = f"{100 * change['mean']:+.2f}"
        rows.append([f"`{name}`", str(len(change["seeds"])), mean, interval(change, "+"), text, *tests])
    return table(head, *rows)


def verdict(variants: Mapping, order: Mapping) -> str:
    """Whether distilled > masked LM alone > random start, and for each two of them the difference."""
    answer = {True: "Yes, and their 95 % intervals over seeds do not overlap", False: "No", None: "Not shown"}
    lines = [f"**Is {' > '.join(LABELS.values())}? {answer[order['holds']]}.**"]
    for pair, found in order["pairs"].items():
        above, below = (LABELS[name] for name in pair.split(" > "))
        lines.append(f"- {above} > {below}: {STATES[found['state']]}{difference_in_words(found)}")
    figures = [f"{LABELS[name]} {with_interval(variants[name]['accuracy'])}" for name in LABELS if name in variants]
    lines += [f"- in percent, with the intervals over seeds: {'; '.join(figures)}"] * bool(figures)
    return "\n".join(lines)


def difference_in_words(found: Mapping) -> str:
    if "mean" not in found:
        return ""
    over_seeds = "" if found["low"] is None else f" {interval(found, '+')} over seeds,"
    text = found["over_text"]
    over_text = "" if text is None or text["low"] is None else f" {interval(text, '+')} over text,"
    return f"; difference {100 * found['mean']:+.2f} points,{over_seeds}{over_text} p {probability(found['p'])}"


def section_4(results: Mapping, statistics: Mapping, folder: Path) -> list[str]:
    head = ["task", "measure", "baseline", "teacher", "distilled (kept)", "masked LM alone (kept)"]
    head += ["distilled − masked LM alone", "p", "student, int8", "paper, Table 2", "model cards"]
    rows = [
        row_of(task, measure, results["tasks"][task], found)
        for task, measures in statistics["tasks"].items()
        for measure, found in measures.items()
    ]
    note = (
        "In percent, on the test examples; differences in points, on the same seeds, with 95 % intervals over seeds. "
        "Baseline: without a model. Kept: of the teacher's figure. int8: the first seed, and the difference from "
        "the same model in fp32. The last two columns are published figures, CamemBERT → DistilCamemBERT, of other "
        "models on other data."
    )
    parts = [table(head, *rows), note, downstream(statistics), *picture("table2.png", folder)]
    return [*parts, *speeds(results), *picture("speed.png", folder)]


def row_of(task: str, measure: str, result: Mapping, found: Mapping) -> list[str]:
    baseline = result.get("baseline", {}).get(measure)
    cells = [NONE if baseline is None else f"{100 * baseline:.2f}", percent(found.get(TEACHER))]
    for name in FINE_TUNED:
        kept = found["kept"][name] if found.get(TEACHER) and found[TEACHER]["mean"] > 0 else None  # mcc may be below
        cells.append(percent(found.get(name)) + (f" ({kept['mean']:.1%})" if kept else ""))
    change = found["difference"]
    cells += [with_interval(change, "+"), probability(change and change["p"])]
    fp32, int8 = result.get("int8", {}).get(measure, (None, None))
    cells.append(NONE if int8 is None else f"{100 * int8:.2f} ({100 * (int8 - fp32):+.2f})")
    sources = [published(source.get((task, measure))) for source in (PAPER, CARDS)]
    return [task, measure.replace("_", " "), *cells, *sources]


def downstream(statistics: Mapping) -> str:
    """Whether distillation shows in the tasks: by the mean over them, and task by task."""
    mean = statistics["mean_of_tasks"]
    if mean is None:
        return "Distilled and masked-LM-only students were not both fine-tuned with the same seeds: no comparison."
    if mean["low"] is None:
        answer = "One seed does not say"
    elif mean["low"] > 0:
        answer = "Yes"
    else:
        answer = "No, rather the opposite" if mean["high"] < 0 else "Not measurably"
    tasks = [statistics["tasks"][task][measure]["difference"] for task, measure in PAPER if task in mean["tasks"]]
    above = sum(change["mean"] > 0 for change in tasks)
    return (
        f"**Does distillation show downstream? {answer}**: against masked LM alone, it changes the mean F1 over "
        f"{', '.join(mean['tasks'])} (each as in the paper) by {with_interval(mean, '+')} points (p "
        f"{probability(mean['p'])}); F1 is higher on {above} of {count(len(tasks), 'task')}."
    )


def speeds(results: Mapping) -> list[str]:
    timed = {task: result["milliseconds"] for task, result in results["tasks"].items() if result.get("milliseconds")}
    if not timed:
        return []
    rows = []
    for task, each in timed.items():
        times = [each.get(name) for name in ("teacher", "student", "student, int8")]
        cells = [f"{time:.2f}" if time else NONE for time in times]
        cells += [f"× {times[0] / time:.2f}" if time else NONE for time in times[1:]]
        equal = results["tasks"][task].get("int8", {}).get("equal_to_fp32")
        rows.append([task, *cells, NONE if equal is None else f"{equal:.2%}"])
    head = ["task", "teacher, ms per text", "student", "student, int8", "speed-up", "speed-up, int8"]
    head.append("labels as in fp32")
    return [f"Speed, one text at a time; the paper's speed-up is × {PAPER_SPEED_UP[1]}:", table(head, *rows)]


def commands(results: Mapping) -> list[str]:
    """The command itself, and the training of the first seed of each variant."""
    lines = [each["runs"][0]["command"] for each in results["variants"].values() if each["runs"]]
    text = "\n".join([results["command"], *lines])
    return [f"```\n{text}\n```", "The other seeds differ in `--seed` and `--out`; `results.json` has every run's."]
