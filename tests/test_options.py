"""One vocabulary: the options of all commands have the same names, values, bounds and defaults in --help."""

import dataclasses
import importlib
import io

import pytest

from data.cli import OptionError, dashed, make_parser, parse_options
from data.tasks import TASKS
from eval.__main__ import main as eval_main
from tests.helpers import REPOSITORY, source_files

COMMANDS = {
    "python train.py": "model.training.options",
    "python convert_weights.py": "convert_weights",
    "python -m data.prepare": "data.prepare",
    "python -m data.inspect": "data.inspect",
    "python -m data.demo": "data.demo.__main__",
    "python -m model.parameters": "model.parameters",
    "python -m eval TASK": "eval.tasks.evaluate",
    **{
        f"python -m eval {name}": f"eval.tasks.{name.replace('-', '_')}"
        for name in ("finetune", "predict", "zero-shot", "fill-mask", "table2", "compare", "runs")
    },
    **{f"python -m eval {name}": f"eval.benchmarks.{name}" for name in ("speed", "throughput", "attention")},
    "python -m eval gpu": "eval.benchmarks.gpu.results",
    "python -m eval reproduce": "eval.reproduce.command",
}
OPTIONS = {command: importlib.import_module(module).Options for command, module in COMMANDS.items()}
FIELDS = [(command, field) for command, options in OPTIONS.items() for field in dataclasses.fields(options)]
NUMBERS = [(c, field) for c, field in FIELDS if any(word in str(field.type) for word in ("int", "float"))]
DIFFERENT = {  # options of one name that differ, and why
    ("out", "metavar"): "a folder, or a file of figures",
    ("label_map", "metavar"): "table2's name the task too; finetune chooses the names, an evaluation has the model's",
    ("epochs", "bounds"): "a fraction of a corpus is enough for masked LM; fine-tuning validates after every epoch",
    ("epochs", "type"): "as above",
    ("block_size", "bounds"): "the benchmark's blocks fit the models of the paper, and hold a masked token",
    ("batch_size", "bounds"): "the benchmark has all of a step on the device at once",
    ("compile", "type"): "a run may choose; the benchmark times one or the other",
    ("compile", "choices"): "as above",
    ("tokens", "bounds"): "of a step; of a whole run",
    ("tokens", "nargs"): "the benchmark takes several sizes",
    ("only", "choices"): "each benchmark has its own parts",
    ("precision", "choices"): "benchmarks name the precisions to compare; a run may choose",
    ("precision", "nargs"): "as above",
}


def value_of(field, key):
    """A property of an option: its metavar, choices, bounds, …"""
    settings = field.metadata["settings"]
    if key == "type":
        return settings.get("type") or {int: int, float: float, bool: bool}.get(field.type, str)
    return field.metadata["bounds"] if key == "bounds" else settings.get(key)


@pytest.mark.parametrize("key", ["metavar", "type", "choices", "nargs", "bounds"])
def test_one_name_means_one_thing(key):
    found = {}
    for command, field in FIELDS:
        if not field.metadata["settings"].get("positional") and (field.name, key) not in DIFFERENT:
            found.setdefault(field.name, {}).setdefault(repr(value_of(field, key)), []).append(command)
    assert {name: values for name, values in found.items() if len(values) > 1} == {}


@pytest.mark.parametrize(("command", "field"), NUMBERS, ids=lambda value: getattr(value, "name", value))
def test_every_number_has_bounds_on_both_sides_that_its_default_keeps(command, field):
    bounds = field.metadata["bounds"]
    assert None not in (bounds["least"], bounds["most"])
    for value in field.default if isinstance(field.default, tuple) else (field.default,):
        assert value is None or bounds["least"] <= value <= bounds["most"]
    assert abs(bounds["most"]) < 2**63  # and so any value fits an int64 and a float32


def required(options) -> list[str]:
    """Positional and other arguments without which the parser stops."""
    fields = [(field.name, field.metadata["settings"]) for field in dataclasses.fields(options)]
    words = ["x" for _, settings in fields if settings.get("positional") and settings.get("nargs") not in ("?", "*")]
    return words + [word for name, settings in fields if settings.get("required") for word in (dashed(name), "x")]


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e308", "1e400", "-1e30", "1" + "0" * 400])
@pytest.mark.parametrize(("command", "field"), NUMBERS, ids=lambda value: getattr(value, "name", value))
def test_values_that_make_no_sense_are_refused(command, field, text, capsys):
    count = field.metadata["settings"].get("nargs")
    words = [f"{dashed(field.name)}", *[text] * (count if isinstance(count, int) else 1)]
    with pytest.raises((OptionError, SystemExit)) as caught:
        parse_options(OPTIONS[command], [*required(OPTIONS[command]), *words], command, "")
    said = str(caught.value) if isinstance(caught.value, OptionError) else capsys.readouterr().err
    assert dashed(field.name) in said and len(said) < 700


@pytest.mark.parametrize("width", [80, 110])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_each_default_once(command, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    parser = make_parser(OPTIONS[command], command, "")
    for action in parser._actions:
        if action.dest in ("help", "version"):
            continue
        field = OPTIONS[command].__dataclass_fields__[action.dest]
        shown = action.help.count("default")
        assert shown == 1 if field.default not in (None, ()) and action.option_strings else shown <= 1, action.dest
        assert not action.required or shown == 0
        assert action.help[-1] != "." and "\n" not in action.help
    text = io.StringIO()
    parser.print_help(text)
    assert max(map(len, text.getvalue().splitlines())) <= width


def test_no_command_is_missing():
    with_options = {path for path in source_files() if "\nclass Options" in path.read_text(encoding="utf-8")}
    files = {REPOSITORY / f"{module.replace('.', '/')}.py" for module in COMMANDS.values()}
    assert with_options == files


EVAL = {command.removeprefix("python -m eval ") for command in COMMANDS if " eval " in command} - {"TASK"}


@pytest.mark.parametrize(
    "words", [[], *([name] for name in sorted(EVAL)), *([task] for task in TASKS), ["predict", "qa"]]
)
def test_every_command_of_eval_has_a_version(words, capsys):
    try:
        status = eval_main([*words, "--version"])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr()
    assert status == 0 and said.err == "" and said.out.startswith("commit ") and said.out.count("\n") == 1


MISTYPED = [  # command, words -> what was meant
    ("python train.py", "--batchsize 8", "--batch-size"),
    ("python train.py", "--batch_size=8", "--batch-size"),
    ("python train.py", "--teachr x", "--teacher"),
    ("python train.py", "--max-h 3", "--max-hours"),
    ("python train.py", "—steps 3", "--steps"),
    ("python train.py", "-steps 3", "--steps"),
    ("python train.py", "--STEPS 3", "--steps"),
    ("python train.py", "--no-resum", "--no-resume"),
    ("python train.py", "--learning-rate 1", "--lr"),
    ("python train.py", "--output_dir x", "--out"),
    ("python train.py", "--gradient-accumulation-steps 4", "--accumulate"),
    ("python train.py", "--direction student_teacher", "student-teacher"),
    ("python train.py", "--precision bf-16", "bf16"),
    ("python train.py", "--precision FP16", "fp16"),
    ("python train.py", "--masking word", "words"),
    ("python -m data.prepare", "--tokeniser x", "--tokenizer"),
    ("python -m data.prepare", "x --tokenizer y --out z --documents blanks", "blank"),
    ("python -m eval table2", "--tasks ner sentimant", "sentiment"),
    ("python -m eval finetune", "--num-train-epochs 3", "--epochs"),
    ("python convert_weights.py", "a b --to HF", "hf"),
]


@pytest.mark.parametrize(("command", "words", "meant"), MISTYPED)
def test_a_mistyped_word_is_answered_with_what_was_meant(command, words, meant, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options(OPTIONS[command], words.split(), command, "")
    assert caught.value.code == 2 and f"Did you mean {meant}?\n" in capsys.readouterr().err


COMMANDS_MEANT = {
    "finetun": "finetune",
    "zeroshot": "zero-shot",
    "sentimant": "sentiment",
    "gpus": "gpu",
    "run": "runs",
}


@pytest.mark.parametrize(("word", "meant"), COMMANDS_MEANT.items())
def test_a_mistyped_command_of_eval(word, meant):
    with pytest.raises(OptionError, match=rf"There is no command {word}\. Did you mean {meant}\?$"):
        eval_main([word])
