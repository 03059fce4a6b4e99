"""What the jobs have found, as one dictionary, and the report written from it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from data.cli import DataError
from data.corpus.shards import MANIFEST
from data.outputs import write_file
from model import Encoder, EncoderConfig, count_parameters

from ..benchmarks.harness import processor
from ..results import write_json
from ..tasks.table2 import MEASURES
from . import work
from .charts import draw
from .plan import Lengths, Setup, run_name, task_folder
from .report import report
from .summary import summary
from .variants import FINE_TUNED, TEACHER

RESULTS, REPORT = "results.json", "report.md"


def input_files(setup: Setup) -> list[Path | str]:
    """What the results depend on, for the provenance."""
    files = [setup.measuring.corpus / MANIFEST, *(path for data in setup.data for path in data.files)]
    given = not setup.pretrained and Path(setup.teacher).is_file()
    return [*files, setup.teacher] if given else files


def write_report(
    setup: Setup,
    about: Mapping,
    lengths: Lengths,
    lost: Mapping[str, str],
    pictures: bool = False,
) -> str:
    """results.json and report.md from what is done, and the pictures -> the report

    about: provenance() of the command; lost: why jobs were not done.
    """
    results = collect(setup, about, lengths, lost)
    statistics = summary(results, setup.out)
    write_json(setup.out / RESULTS, {**results, "statistics": statistics})
    if pictures:
        draw(results, statistics, setup.out)
    text = report(results, statistics, setup.out)
    write_file(setup.out / REPORT, text.encode())
    return text


def collect(setup: Setup, about: Mapping, lengths: Lengths, lost: Mapping[str, str]) -> dict:
    teacher = read(Path(setup.measuring.teacher) / work.FIGURES) or {}
    configs = {"teacher": setup.sizes.teacher, "student": setup.sizes.student}
    return {
        **about,
        "scale": scale(setup, about["options"], lengths, teacher),
        "teacher": {name: teacher[name] for name in ("accuracy", "mlm_loss", "weights") if name in teacher},
        "parameters": {name: parameters(config) for name, config in configs.items()},
        "variants": variants(setup) if teacher else {},  # all are compared with it
        "tasks": {data.task: found for data in setup.data if (found := task_results(setup, data.task))},
        "not_done": [f"{name}: {reason}" for name, reason in lost.items()],
    }


def parameters(config: EncoderConfig) -> dict[str, int]:
    """The parameters that the encoder has, and what equation (9) gives."""
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in Encoder(config).parameters())
    return {"equation_9": count_parameters(config), "counted": counted}


def read(path: Path) -> dict | None:
    """None if a job has yet to write it.  Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}). Remove it, and start again: only its job is repeated.") from None


def scale(setup: Setup, options: Mapping, lengths: Lengths, teacher: Mapping) -> dict:
    device, sizes = setup.device, setup.sizes
    return {
        "teacher": options["teacher"],
        "corpus": " ".join(options["corpus"]),
        "is_demo": setup.is_demo,
        "tokens": lengths.tokens,
        "teacher_tokens": lengths.teacher_tokens,
        "steps": lengths.tokens // sizes.step_tokens,
        "teacher_layers": sizes.teacher.num_layers,
        "student_layers": sizes.student.num_layers,
        "hidden_size": sizes.teacher.hidden_size,
        "vocab_size": sizes.teacher.vocab_size,
        "held_out_blocks": teacher.get("blocks"),
        "masked_tokens": teacher.get("masked_tokens"),
        "device": str(device),
        "precision": teacher.get("runtime", {}).get("precision"),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
    }


def variants(setup: Setup) -> dict[str, dict]:
    """Of each variant, what its finished runs have found."""
    found = {}
    for variant in setup.variants:
        runs = []
        for name in (run_name(variant.name, seed) for seed in setup.seeds):
            folder = setup.out / "runs" / name
            if (figures := read(folder / work.FIGURES)) is not None:
                runs.append({**figures, "counts": f"runs/{name}/{work.COUNTS}"})
        if runs:
            found[variant.name] = {"about": variant.about, "runs": runs}
    return found


def task_results(setup: Setup, task: str) -> dict:
    """Of a task, the test figures of each model and seed, the baseline and the speeds; {} if there are none."""
    models = {}
    for model in (TEACHER, *FINE_TUNED):
        found = [read(task_folder(setup, task, model, seed) / work.FIGURES) for seed in setup.seeds]
        if runs := [{"seed": run["seed"], "test": of_task(run["test"], task)} for run in found if run]:
            models[model] = runs
    if not models:
        return {}
    baseline = read(setup.out / "tasks" / task / work.BASELINE)
    result = {"models": models, "baseline": {measure: baseline[measure]["value"] for measure in MEASURES[task]}}
    timed = read(setup.out / "tasks" / task / work.SPEEDS)
    if timed is not None:
        result["milliseconds"] = timed["milliseconds"]
        if "student_int8" in timed:
            of_int8 = timed["student_int8"]
            values = [of_task(of_int8["figures"][precision], task) for precision in ("fp32", "int8")]
            result["int8"] = {measure: [each[measure]["value"] for each in values] for measure in MEASURES[task]}
            result["int8"]["equal_to_fp32"] = of_int8["equal_to_fp32"]
    return result


def of_task(metrics: dict, task: str) -> dict:
    return {measure: metrics[measure] for measure in MEASURES[task]}
