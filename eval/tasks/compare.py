"""Compares two or more models on the same data: figures, differences to the first model, and options that differ.

A RUN is the folder of a run of train.py (of an unfinished one, its newest checkpoint is taken), a folder of finetune,
or any model: a file, a folder, owner/name on the hub. All must be of one kind:

- masked LMs with one tokenizer, on the held-out part of one corpus, masked in the same way for all;
- models fine-tuned on one task, on the same labelled examples.

Intervals are 95 % bootstrap intervals over blocks of text or examples; they say nothing about other seeds. Those of
differences are paired: both models are measured on the same resamples, so that a difference can be clear where the
models' own intervals overlap.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

import numpy
import torch
import torch.nn.functional as F
from numpy import ndarray
from torch import Tensor

from data import demo
from data.blocks import Batch, open_blocks, validation_batches
from data.cache import DEMO, prepared_folder
from data.cli import DataError, check, check_bounds, dashed, option, parse_options, say, warn
from data.corpus.files import check_corpus
from data.corpus.shards import MANIFEST
from data.download.models import fetch_models
from data.masking import Masking
from data.tasks import TASKS, read_task
from data.tasks.contents import check_files, file_and_member
from losses import IGNORE_INDEX, LossSettings
from model import MaskedLM, QuestionAnswerer, TokenClassifier
from model.checkpoints.load import check_vocabulary, load_teacher, load_tokenizer
from model.checkpoints.native import fingerprint
from model.heads import PROBLEM_TYPES
from model.training.bounds import SEED
from model.training.device import prepare_models
from model.training.run_state import hash_json

from ..benchmarks.harness import table_on_screen
from ..results import check_writable, command_line, provenance, write_json
from ..validation import VALIDATION_BLOCKS, validate
from .bootstrap import Metric, bootstrap, difference, ratio
from .compared_runs import Run, cell, check_one_kind, differing, open_run
from .evaluate import (
    LABEL_MAP_HELP,
    InferenceOptions,
    choose_runtime,
    evaluate,
    new_names,
    open_model,
    parse_label_map,
)
from .run_folders import printable

CORPUS_HELP = "text with a held-out part: prepared folder or text (default: that of the first run that names its own)"
BLOCK_SIZE_HELP = "tokens per block (default: that of the run whose corpus is used, else 128)"
TASK_HELP = "of the models (default: the one they were fine-tuned on)"
TEST_HELP = "labelled examples (default: --test of the first model that names its own)"
TASK_OF_KIND = {TokenClassifier: "ner", QuestionAnswerer: "qa"}


@dataclass(frozen=True)
class Options(InferenceOptions):
    runs: tuple[str, ...] = option(
        (), "two or more runs or models", "input and output", metavar="RUN", nargs="+", positional=True
    )
    seed: int = option(0, "of the bootstrap resamples", **SEED)
    out: str | None = option(None, "JSON file (default: runs/results/compare-TIME.json)", metavar="FILE")

    teacher: str | None = option(None, "also the agreement with this masked LM; or demo", "masked LMs", metavar="MODEL")
    corpus: tuple[str, ...] = option((), CORPUS_HELP, nargs="+", metavar="PATH")
    cache: str = option("runs/corpora", "folder where text given as --corpus is prepared", metavar="FOLDER")
    block_size: int | None = option(None, BLOCK_SIZE_HELP, type=int, least=3, most=10**5)
    blocks: int = option(VALIDATION_BLOCKS, "held-out blocks, at most", least=1, most=10**6)

    task: str | None = option(None, TASK_HELP, "fine-tuned models", choices=TASKS)
    test: tuple[str, ...] = option((), TEST_HELP, nargs="+", metavar="FILE")
    label_map: tuple[str, ...] = option((), LABEL_MAP_HELP, nargs="+", metavar="DATA=MODEL")
    as_text: bool = option(False, "ner: find the entities in the words joined to running text, as predict does")

    def __post_init__(self):
        check_bounds(self)
        check(len(self.runs) > 1, "Name two or more runs or models to compare.")


class Compared(NamedTuple):
    """The metrics of each model, and what they were measured on."""

    metrics: list[dict]
    tokenizers: list[str]  # the models' own, by hash
    about: dict
    files: Sequence[str]
    said: str


# ---- masked LMs ------------------------------------------------------------------------------------------------


def compare_masked_lms(runs: Sequence[Run], options: Options) -> Compared:
    """mlm_loss, accuracy, pseudo_perplexity, and agreement with a teacher, as validate() has them, with intervals."""
    for name in ("task", "test", "label_map"):
        check(not getattr(options, name), f"{dashed(name)} is for fine-tuned models; these are masked LMs.")
    check(options.precision != "int8", "--precision int8 is for fine-tuned models; these are masked LMs.")
    runtime = choose_runtime(options)
    named = demo.TEACHER if options.teacher == "demo" else options.teacher
    tokenizer = load_tokenizer(options.tokenizer, *(run.path for run in runs), named)
    corpus, stored = (options.corpus, {}) if options.corpus else corpus_of(runs)
    if corpus != DEMO:
        check_corpus(corpus)
    block_size = options.block_size or stored.get("block_size", 128)
    folder = prepared_folder(corpus, tokenizer, options.cache)
    blocks, held_out = open_blocks(folder, tokenizer, block_size, stored.get("within_documents") is True)
    batches = validation_batches(held_out, Masking(tokenizer), options.blocks)
    warn_of_other_corpora(runs, hash_json(blocks.hashes()))
    teacher = named and load_teacher(named, MaskedLM, runtime.device)
    if teacher:
        check_vocabulary(teacher.config, tokenizer)
    metrics, of_teacher = [], {}
    for number, run in enumerate(runs, 1):
        say(f"measuring {number}  {printable(run.name)}")
        model = load_teacher(run.path, MaskedLM, runtime.device)
        check_vocabulary(model.config, tokenizer)
        longest = min(each.config.max_tokens for each in (model, teacher) if each)
        check(block_size <= longest, f"--block-size {block_size} exceeds the {longest} tokens that {run.name} takes.")
        prepare_models(model, teacher or None, runtime)
        counts: list[Tensor] = []
        values = validate(model, teacher or None, batches, LossSettings(), runtime, observe=counter(counts))
        report = bootstrap(torch.cat(counts).numpy(), masked_lm_metrics, options.seed)
        for name, metric in report.items():
            metric["value"] = values[name]  # to the last digit what the run's own validation gives
        metrics.append(report)
        of_teacher = {name: value for name, value in values.items() if name == "teacher_accuracy"}
    masked = int(torch.cat(counts)[:, 0].sum())
    number = sum(len(batch.labels) for batch in batches)
    about = {"corpus": list(corpus), "folder": str(folder), "corpus_hash": hash_json(blocks.hashes())}
    about |= {"block_size": block_size, "blocks": number, "masked_tokens": masked, **of_teacher}
    about |= {"teacher": fingerprint(teacher) if teacher else None, "runtime": runtime.to_json()}
    said = (
        f"{number:,} held-out blocks of {block_size} tokens of {folder}, {masked:,} tokens masked, {runtime.precision}"
    )
    said += "".join(f"; teacher's accuracy {value:.4f}" for value in of_teacher.values())
    return Compared(metrics, [tokenizer.sha256()] * len(runs), about, [str(folder / MANIFEST)], said)


def corpus_of(runs: Sequence[Run]) -> tuple[tuple[str, ...], dict]:
    """The first corpus stored in a run's options that is still there -> it and those options.  Raises DataError."""
    for run in runs:
        corpus, block_size = run.options.get("corpus"), run.options.get("block_size")
        if not isinstance(corpus, list) or not corpus or not all(isinstance(path, str) for path in corpus):
            continue
        if tuple(corpus) == DEMO or all(os.path.isfile(path) or os.path.isdir(path) for path in corpus):
            valid = type(block_size) is int and 3 <= block_size <= 10**5
            stored = {name: run.options.get(name) for name in ("block_size", "within_documents")}
            return tuple(corpus), stored if valid else {}
    raise DataError("None of the runs names a corpus that is still there. Name text with --corpus.")


def warn_of_other_corpora(runs: Sequence[Run], corpus_hash: str) -> None:
    for run in runs:
        if run.facts.get("hash of corpus", corpus_hash) != corpus_hash:
            warn(f"{run.name} was trained on another corpus: it may have seen the text that is held out here.")


def counter(counts: list[Tensor]) -> Callable[[Batch, Tensor, Tensor | None], None]:
    """For validate(): appends for each batch (B, 3 or 4), per block the masked tokens, the sum of their losses, and
    how many are predicted right and as the teacher does."""

    def observe(batch: Batch, logits: Tensor, teacher_predictions: Tensor | None) -> None:
        masked = batch.labels != IGNORE_INDEX
        labels, predictions = batch.labels[masked], logits.argmax(dim=-1)  # (N,)
        columns = [torch.ones_like(labels), F.cross_entropy(logits.float(), labels, reduction="none")]
        columns += [predictions == other for other in (labels, teacher_predictions) if other is not None]
        values = torch.stack([column.double().cpu() for column in columns], dim=1)  # (N, 3 or 4)
        rows = masked.nonzero()[:, 0].cpu()
        counts.append(torch.zeros(len(masked), len(columns), dtype=torch.float64).index_add_(0, rows, values))

    return observe


def masked_lm_metrics(sums: ndarray) -> dict[str, ndarray]:
    """sums: (…, 3 or 4), see counter() -> each (…)"""
    masked, loss, *hits = numpy.moveaxis(sums, -1, 0)
    mlm = ratio(loss, masked)
    found = {"mlm_loss": mlm, "pseudo_perplexity": numpy.exp(numpy.minimum(mlm, 700.0))}
    return found | {name: ratio(hit, masked) for name, hit in zip(("accuracy", "agreement"), hits)}


# ---- fine-tuned models -----------------------------------------------------------------------------------------


def compare_fine_tuned(runs: Sequence[Run], options: Options) -> Compared:
    """The metrics of `python -m eval TASK` of each model."""
    for name in ("teacher", "corpus", "block_size"):
        check(not getattr(options, name), f"{dashed(name)} is for masked LMs; these are fine-tuned models.")
    task_name, test = task_of(runs, options.task), test_of(runs, options.test)
    check(task_name == "ner" or not options.as_text, "--as-text is only for ner.")
    check(task_name != "qa" or not options.label_map, "--label-map is only for tasks with labels, not for qa.")
    check_files(test)
    names = new_names(parse_label_map(options.label_map))
    problem_type = runs[0].problem_type or PROBLEM_TYPES[0]
    examples = read_task(task_name, test, warn, problem_type, label_map=names, part="test")
    options = replace(options, precision=choose_runtime(options).precision)  # one for all, whatever their files hold
    metrics, tokenizers = [], []
    for number, run in enumerate(runs, 1):
        say(f"measuring {number}  {printable(run.name)}")
        model, task, runtime = open_model(run.path, task_name, options)
        metrics.append(evaluate(model, task, examples, runtime, options))
        tokenizers.append(task.settings.tokenizer.sha256())
    said = f"{task_name}, {len(examples):,} examples of {', '.join(test)}, {runtime.precision}"
    about = {"task": task_name, "test": list(test), "runtime": runtime.to_json()}
    return Compared(metrics, tokenizers, about, test, said)


def task_of(runs: Sequence[Run], given: str | None) -> str:
    """Raises OptionError if the models are of several tasks, or do not say theirs."""
    stored = {run.task: run.name for run in runs if run.task in TASKS}
    several = ", ".join(f"{name} is for {task}" for task, name in stored.items())
    check(len(stored) < 2, f"{several}: models of one task can be compared.")
    task = TASK_OF_KIND.get(runs[0].kind) or given or next(iter(stored), None)
    check(task is not None, "None of the models says what task it is for. Name it with --task.")
    check(given in (None, task), f"--task {given}: the models are for {task}.")
    return task


def test_of(runs: Sequence[Run], given: tuple[str, ...]) -> tuple[str, ...]:
    """--test, else that of the first model whose files are still there.  Raises DataError."""
    if given:
        return given
    for test in (run.options.get("test") for run in runs):
        if isinstance(test, list) and test and all(isinstance(path, str) for path in test):
            with contextlib.suppress(DataError):
                if all(os.path.isfile(file_and_member(path)[0]) for path in test):  # not a device or a pipe
                    return tuple(test)
    raise DataError("None of the models names test files that are still there. Name labelled examples with --test.")


# ---- the result ------------------------------------------------------------------------------------------------


def differences(compared: Compared) -> list[dict[str, Metric]]:
    """Of each model but the first, per metric, from the first; without those over the tokens of other tokenizers."""
    first, found = compared.metrics[0], []
    for metrics, tokenizer in zip(compared.metrics[1:], compared.tokenizers[1:]):
        names = [name for name in metrics if isinstance(metrics[name], Metric) and name in first]
        same = tokenizer == compared.tokenizers[0]
        names = [name for name in names if same or not name.startswith("subword")]
        found.append({name: difference(metrics[name], first[name]) for name in names})
    return found


def interval(metric: Metric, sign: str = "") -> str:
    if metric["low"] is None:
        return f"{metric['value']:{sign}.4f}"
    return "{value:{s}.4f}  [{low:{s}.4f}, {high:{s}.4f}]".format(**metric, s=sign)


def is_clear(metric: Metric) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return metric["low"] is not None and not metric["low"] <= 0 <= metric["high"]


def lines_of(runs: Sequence[Run], compared: Compared, found: Sequence[dict[str, Metric]]) -> list[str]:
    """What is printed."""
    lines = [""]
    for number, run in enumerate(runs, 1):
        twin = next((n for n, other in enumerate(runs[: number - 1], 1) if other.weights == run.weights), None)
        same = f", the same weights as {twin}" if twin else ""
        same += "" if run.options else "; its options are not stored"
        lines.append(f"{number}  {printable(run.name)}: {run.kind.__name__}, {run.parameters:,} parameters{same}")
    rows = [[printable(name), *(cell(name, value) for value in values)] for name, values in differing(runs).items()]
    header = ["differs", *map(str, range(1, len(runs) + 1))]
    lines += ["", table_on_screen(header, *rows) if rows else "No stored option differs."]
    lines += ["", f"Measured on {printable(compared.said)}."]
    for name in [name for name, metric in compared.metrics[0].items() if isinstance(metric, Metric)]:
        lines.append(f"\n{name.replace('_', ' ')}")
        cells = [interval(metrics[name]) if name in metrics else "–" for metrics in compared.metrics]
        for number, shown in enumerate(cells, 1):
            line = f"  {number}  {shown:<{max(map(len, cells))}}"
            if number > 1 and (change := found[number - 2].get(name)):
                line += f"  difference to 1: {interval(change, '+')}{' *' * is_clear(change)}"
            lines.append(line.rstrip())
    lines.append("\n* 0 lies outside the 95 % interval of the difference; by chance alone, so do 5 of 100 differences.")
    return lines


def main(arguments: list[str]) -> None:
    """The command `python -m eval compare`.  Raises OptionError, DataError, ModelError, Diverged."""
    usage = "python -m eval compare RUN RUN… [OPTIONS]"
    options = fetch_models(parse_options(Options, arguments, usage, __doc__), "teacher", "tokenizer")
    out = options.out or f"runs/results/compare-{datetime.now():%Y%m%d-%H%M%S}.json"
    check_writable(out)
    runs = [open_run(name) for name in options.runs]
    check_one_kind(runs)
    compared = (compare_masked_lms if runs[0].kind is MaskedLM else compare_fine_tuned)(runs, options)
    found = differences(compared)
    results = [
        run._asdict() | {"kind": run.kind.__name__, "figures": metrics, "difference_to_first": change}
        for run, metrics, change in zip(runs, compared.metrics, [None, *found])
    ]
    about = provenance(command_line("compare", arguments), options, compared.files, [options.seed])
    write_json(out, {"runs": results, "differing": differing(runs), "measured_on": compared.about, **about})
    print("\n".join(lines_of(runs, compared, found)))
    print(f"\nWritten: {out}")
