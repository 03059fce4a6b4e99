"""The model card of an exported model: how it was made, from the provenance stored in its file."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from .licences import LICENCES, licence_lines
from .markdown import code, is_figure, line, number, table, text, yaml
from .names import CLASSES
from .native import HEAD_SETTINGS
from .provenance import as_dict, as_list, base_model, datasets, is_demo, origin_of, shown, shown_command
from .usage import USAGE

PIPELINES = {  # transformers' class -> the hub's name of its task
    "CamembertForMaskedLM": "fill-mask",
    "CamembertForSequenceClassification": "text-classification",
    "CamembertForTokenClassification": "token-classification",
    "CamembertForQuestionAnswering": "question-answering",
    "CamembertModel": "feature-extraction",
}
TASKS = {  # a task of section 4 -> its name and its pipeline
    "sentiment": ("sentiment classification", "text-classification"),
    "ner": ("named-entity recognition", "token-classification"),
    "nli": ("natural language inference", "text-classification"),
    "qa": ("question answering", "question-answering"),
}
LOSSES = {
    "loss": "total",
    "soft_label_loss": "soft labels",
    "cosine_loss": "cosine",
    "mlm_loss": "masked LM",
    "hidden_state_loss": "hidden states",
    "relation_loss": "attention relations",
}
METRICS = {  # our figures -> the hub's metrics; the others go by their own name
    **dict.fromkeys(("macro_f1", "micro_f1", "weighted_f1", "entity_f1", "overlap_f1", "subword_f1"), "f1"),
    **{"entity_precision": "precision", "entity_recall": "recall", "mcc": "matthews_correlation"},
    **{"overlap_precision": "precision", "overlap_recall": "recall", "pearson": "pearsonr", "spearman": "spearmanr"},
}
ROUNDED = (True, "int8")  # provenance of weights that are rounded, or once were
SPLITS = {"dev": "validation", "test": "test"}  # our part -> the hub's split
OUTPUTS = {  # what a reader must know of the outputs, by the head's setting in config.json
    "multi_label_classification": "A text can have several labels: the score of each is a sigmoid of its own.",
    "regression": "The output is a value, not a probability: it is used as it is.",
}


def model_card(
    model: nn.Module,
    name: str,
    provenance: Mapping,
    metrics: Mapping,
    results: Mapping,
    licence: str | None = None,
    has_tokenizer: bool = True,
) -> str:
    """The README.md of an exported model, in the hub's format, without local paths.

    name: of the model. provenance: of read_provenance, or {"converted from": …}. metrics: of read_metrics. results: of
    read_results. licence: of LICENCE_NAMES; without it, a model that was only converted has that of its base.
    All of them may come from a damaged file: what has an unexpected type there is left out.
    """
    architecture = CLASSES[type(model).__name__]
    pipeline, base = PIPELINES[architecture], base_model(provenance)
    repository = base and base.partition("@")[0]
    is_trained = "task" in provenance or bool(as_dict(provenance.get("options")))
    known = None if is_trained else LICENCES.get(repository)
    front = {
        "language": "fr",
        "license": licence or known or "unknown",
        "library_name": "transformers",
        "pipeline_tag": pipeline,
        "tags": tags(provenance),
    }
    if base:
        front["base_model"] = repository
    if base and is_trained:
        front["base_model_relation"] = "finetune"  # of the hub's relations, also the one for a distilled student
    if names := datasets(provenance):
        front["datasets"] = names
    if found := evaluations(model, pipeline, provenance):
        front["metrics"] = sorted({metric["type"] for result in found for metric in result["metrics"]})
        front["model-index"] = [{"name": line(name) or "model", "results": found}]
    body = [f"# A French model of {model.config.num_layers} layers (`{architecture}`)", "", *outputs(model)]
    if is_demo(provenance):
        body += ["**A demo**: it comes from a small model and from sentences about an invented world. It is no use", ""]
        body[-2] += " for real French."
    if provenance.get("fresh_head") is True:
        body += ["**The head is untrained**: its weights are random.", ""]
    if "task" in provenance:
        body += fine_tuning(provenance, results)
    elif is_trained:
        body += distillation(provenance, metrics)
    elif "converted from" in provenance:
        body += [f"Converted from {code(shown(provenance['converted from']))}.", ""]
    body += [*stored_weights(model, provenance, is_trained), *usage(pipeline, provenance, has_tokenizer)]
    body += ["## Licence", "", *licence_lines(licence or known, repository), ""]
    if versions := as_dict(provenance.get("versions")):
        body += [f"Made with {', '.join(f'{text(key)} {text(value)}' for key, value in versions.items())}.", ""]
    return "\n".join(["---", *yaml(front), "---", "", *body])


def tags(provenance: Mapping) -> list[str]:
    options, task = as_dict(provenance.get("options")), provenance.get("task")
    is_distilled = options.get("teacher") not in (None, "none")
    found = ["camembert", "french"] + ["distillation"] * is_distilled + ["demo"] * is_demo(provenance)
    return found + ([task] if isinstance(task, str) and task in TASKS else [])


def outputs(model: nn.Module) -> list[str]:
    """How the outputs are read."""
    setting = getattr(model, HEAD_SETTINGS.get(type(model), ""), None)
    if setting in OUTPUTS:
        return [OUTPUTS[setting], ""]
    if not isinstance(setting, float | int):
        return []
    return [
        "Where the start and end logits of `<s>` exceed those of the best answer by more than "
        f"{setting:.4f} (transformers' `null_score_diff_threshold`), the context does not answer the question.",
        "",
    ]


# ---- figures ---------------------------------------------------------------------------------------------------


def is_rounded(model: nn.Module) -> bool:
    """Whether weights are in less than the float32 that a run saves: its figures are not those of this file."""
    return any(tensor.dtype not in (torch.float32, torch.float64) for tensor in model.state_dict().values())


def evaluations(model: nn.Module, pipeline: str, provenance: Mapping) -> list[dict]:
    """The results of the hub's model-index: figures measured with these very weights and this head."""
    if is_rounded(model) or provenance.get("rounded") in ROUNDED or provenance.get("fresh_head") is True:
        return []
    if "task" not in provenance:
        held_out = as_dict(provenance.get("held_out"))
        accuracy, perplexity = held_out.get("accuracy"), held_out.get("pseudo_perplexity")
        found = [("accuracy", "Masked-token accuracy", accuracy), ("perplexity", "Pseudo-perplexity", perplexity)]
        metrics = [{"type": kind, "name": name, "value": value} for kind, name, value in found if is_figure(value)]
        if pipeline != "fill-mask" or not metrics:
            return []
        corpus = as_list(as_dict(provenance.get("options")).get("corpus"))
        texts = ", ".join(map(line, map(shown, corpus))) or "the corpus"
        names = datasets(provenance)
        dataset = {"name": f"held-out part of {texts}", "type": names[0] if len(names) == 1 else "local"}
        task = {"type": pipeline, "name": "Masked language modelling"}
        return [{"task": task, "dataset": {**dataset, "split": "validation"}, "metrics": metrics}]
    name, of_task = TASKS.get(line(provenance["task"]), (None, None))
    results, options = [], as_dict(provenance.get("options"))
    train, dev = (as_list(options.get(part)) for part in ("train", "dev"))
    for part, figures in parts(provenance).items() if of_task == pipeline else ():
        files = as_list(options.get(part)) or [part]
        metrics = [
            {"type": METRICS.get(key, key), "name": key.replace("_", " "), "value": value}
            for key, value in ((key, as_dict(figure).get("value")) for key, figure in figures.items())
            if is_figure(value) and line(key)
        ]
        dataset = {"name": ", ".join(map(line, map(shown, files))), "type": "local", "split": SPLITS[part]}
        if train and train == dev:  # table2 splits the examples itself
            dataset["name"] = f"{part} part of {', '.join(map(line, map(shown, train)))}"
        if metrics:
            results.append({"task": {"type": pipeline, "name": name}, "dataset": dataset, "metrics": metrics})
    return results


def parts(provenance: Mapping) -> dict[str, dict]:
    """The figures of the saved run, by part."""
    run = as_dict(provenance.get("run"))
    return {part: as_dict(run[part]) for part in SPLITS if part in run}


# ---- how it was made -------------------------------------------------------------------------------------------


def named(provenance: Mapping, option: str) -> str:
    """The model that an option names; of a local file, also the model on the hub that it comes from, if known."""
    value, origin = as_dict(provenance.get("options")).get(option), origin_of(provenance, option)
    return code(shown(value)) + (f" (from {code(origin)})" if origin and origin != value else "")


def fine_tuning(provenance: Mapping, results: Mapping) -> list[str]:
    """The lines on a run of `python -m eval finetune` or `table2`."""
    options, run, task = as_dict(provenance.get("options")), as_dict(provenance.get("run")), line(provenance["task"])
    made = f"Fine-tuned from {named(provenance, 'model')} for {TASKS.get(task, (text(task),))[0]}"
    if options.get("teacher") is not None:
        weight, temperature = text(options.get("soft_weight")), text(options.get("temperature"))
        made += f", distilled from {named(provenance, 'teacher')}, a teacher of the same task"
        made += f" (weight of its soft labels {weight}, temperature {temperature})"
    train, dev, test = (code(*map(shown, as_list(options.get(part)))) or "unknown" for part in ("train", "dev", "test"))
    if train == dev:  # table2 splits the examples itself
        data = f"Trained and evaluated on parts of {code(*map(shown, as_dict(provenance.get('files'))))}."
    else:
        data = f"Trained on {train}; best epoch chosen on {dev}."
        data += f" Tested on {test}." if as_list(options.get("test")) else ""
    figures = {f"{part}": values for part, values in parts(provenance).items()}
    columns = {
        part: {key: number(as_dict(figure).get("value")) for key, figure in values.items()}
        for part, values in figures.items()
    } | over_seeds(results)
    names = dict.fromkeys(key for column in columns.values() for key in column)
    rows = [(text(key.replace("_", " ")), *(column.get(key, "") for column in columns.values())) for key in names]
    count = len(as_list(results.get("runs")))
    chosen = f" This is the best on dev of {count} seeds." if count > 1 else ""
    return [
        f"{made}{':' if (command := shown_command(provenance)) else '.'}",
        "",
        *([f"```\n{line(command)}\n```\n"] if command else []),
        data,
        "",
        f"Figures of the best epoch on dev (epoch {text(run.get('epoch'))}, seed {text(run.get('seed'))}).{chosen}",
        "",
        *table(("figure", *columns), rows),
    ]


def over_seeds(results: Mapping) -> dict[str, dict[str, str]]:
    """Columns with the mean and standard deviation over the seeds of results.json, if it has several."""
    count = len(as_list(results.get("runs")))
    columns = {}
    for part in SPLITS if count > 1 else ():
        column = columns[f"{part}, mean of {count} seeds"] = {}
        for key, figure in as_dict(as_dict(results.get("over_seeds")).get(part)).items():
            mean, deviation = (number(as_dict(figure).get(name)) for name in ("mean", "deviation"))
            column[key] = f"{mean} ± {deviation}" if mean and deviation else mean
    return {name: column for name, column in columns.items() if column}


def distillation(provenance: Mapping, metrics: Mapping) -> list[str]:
    """The lines on a run of train.py, with or without a teacher."""
    options, student = as_dict(provenance["options"]), None
    if options.get("student") is not None:
        student = named(provenance, "student")
    if options.get("teacher") == "none":
        made = f"Trained from {student or 'random weights'}, without a teacher"
    else:
        made = f"Distilled from {named(provenance, 'teacher')} by DistilCamemBERT's method"
        made += f", beginning with {student}" if student else ""
    corpus = code(*map(shown, as_list(options.get("corpus")))) or "unknown"
    lines = [f"{made}, on {corpus}:", "", f"```\n{line(shown_command(provenance))}\n```\n"]
    sizes = [options.get(name) for name in ("steps", "batch_size", "accumulate", "block_size")]
    if all(type(size) is int and 0 < size < 2**40 for size in sizes):
        precision = as_dict(provenance.get("runtime")).get("precision")
        computed = f", computed in {text(precision)}" if isinstance(precision, str) else ""
        tokens, steps, done = math.prod(sizes[1:]), sizes[0], provenance.get("step")
        before = f"Step {done:,} of " if type(done) is int and 0 <= done < steps else ""
        trained = (done if before else steps) * tokens
        lines += [f"{before}{steps:,} steps of {tokens:,} tokens, {trained:,} in all{computed}.", ""]
        lines[-2] += extended(provenance)
    if metrics:
        lines += [f"Training losses at step {text(metrics.get('step'))}:", ""]
        lines += table(("loss", "mean"), ((word, number(metrics.get(key))) for key, word in LOSSES.items()))
    if accuracy := as_dict(provenance.get("held_out_accuracy")):
        lines += ["Masked-token accuracy on held-out text:", ""]
        lines += table(("model", "accuracy"), ((text(name), number(x, ".1%")) for name, x in accuracy.items()))
    return lines


def extended(provenance: Mapping) -> str:
    """What the command does not show."""
    ends = [f"{each:,}" for each in as_list(provenance.get("schedules")) if type(each) is int and 0 < each < 2**40]
    if len(ends) < 2:
        return ""
    before = f"before, its learning rate decayed towards 0 at step {ends[-2]}"
    return f" The run was extended, from {' to '.join(ends)} steps: {before}."


# ---- what it is and how it is used -----------------------------------------------------------------------------


def stored_weights(model: nn.Module, provenance: Mapping, is_trained: bool) -> list[str]:
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.state_dict().values()})
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"{count:,} parameters, stored as {' and '.join(dtypes)}."]
    if provenance.get("rounded") == "int8":
        lines[0] += " The encoder's matrices were rounded to int8, with a scale per row, before."
    if is_trained and (is_rounded(model) or provenance.get("rounded") in ROUNDED):
        lines[0] += " Figures above were measured before the weights were rounded."
    task = TASKS.get(line(provenance.get("task")), (None, "fill-mask"))[1]
    if is_trained and task != PIPELINES[CLASSES[type(model).__name__]]:
        lines[0] += " Figures above are of the model with the head that was left out or replaced here."
    return [*lines, ""]


def usage(pipeline: str, provenance: Mapping, has_tokenizer: bool) -> list[str]:
    """A program that runs in the folder."""
    if not has_tokenizer:
        return ["The tokenizer is not included: it is that of the model that this one was made from.", ""]
    program = USAGE["nli" if provenance.get("task") == "nli" and pipeline == "text-classification" else pipeline]
    return ["## Use", "", 'With `"."`, this folder, or its name on the hub:', "", f"```python\n{program}```", ""]
