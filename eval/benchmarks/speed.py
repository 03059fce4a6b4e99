"""Benchmark of inference: the student compared with its teacher, and with transformers and ONNX Runtime if installed.

fixed: sequences of one length; mixed: real lines of many lengths; latency: one short sentence at a time; memory: of a
process that loads the student and reads sentences one at a time; predict: the command, from file to JSON lines
(`speed_predict.py`). Rows run in alternation, each in its own process (`speed_rows.py`). The speed does not depend on
the values of the weights, which may be random.
"""

import re
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from data import demo
from data.cli import DataError, check, check_bounds, check_paths, option, parse_options, say
from data.download.models import fetch_models
from data.tokenizer import Tokenizer
from model import Encoder, EncoderConfig, ModelError, SequenceClassifier
from model.checkpoints.load import check_vocabulary, load_tokenizer
from model.inference import PRECISIONS
from model.training.device import DEVICE_HELP, INFERENCE_PRECISIONS, Runtime, choose_device, choose_precision

from ..results import check_writable, command_line, provenance, write_json
from ..tasks.batching import BUDGET, infer
from .harness import LOG, Row, append_to_log, configs, heading, measure, ratio, table
from .speed_predict import predict_jobs, predict_table, predict_verdicts, write_inputs
from .speed_rows import (
    ONNX,
    REPEATS,
    STUDENT,
    TEACHER,
    TRANSFORMERS,
    Files,
    frozen,
    hidden_states,
    jobs_of,
    load_encoder,
    memory_jobs,
    missing_for_onnx,
    onnx_states,
    open_session,
    transformers_model,
    transformers_states,
    write_graphs,
)

PARTS = ("fixed", "mixed", "latency", "memory", "predict")
SHORT = 20  # tokens of the sentence whose latency is measured
SENTENCES = 50  # of the text, read one at a time where memory is measured
TOLERANCE = 1e-4  # ‖h - h_transformers‖ / ‖h_transformers‖ in fp32; 1e-6 was measured
SAME_PREDICTIONS = {"bf16": 0.995, "fp16": 0.995, "int8": 0.99}  # minimum fraction of predictions that are fp32's
MEMORY, MEMORY_AIM = 150e6, 110e6  # bytes of a process that serves the student in int8, beyond its imports
FLOATS = tuple(PRECISIONS)


class Target(NamedTuple):
    """A speed-up of this project's row over the fastest row of another kind."""

    part: str
    name: str
    precision: str
    other: str  # the names of the other rows begin so
    other_precision: str
    least: float
    aim: float


TARGETS = (
    *(Target("fixed", STUDENT, name, TEACHER, name, 1.95, 1.95) for name in FLOATS),
    *(Target("fixed", STUDENT, name, TRANSFORMERS, name, 1.0, 1.0) for name in FLOATS),
    *(Target("mixed", STUDENT, name, TRANSFORMERS, name, 1.7, 2.2) for name in ("fp32", "fp16")),
    *(Target("latency", STUDENT, name, TRANSFORMERS, name, 1.0, 1.0) for name in ("fp32", "fp16")),
    Target("mixed", STUDENT, "bf16", TRANSFORMERS, "bf16", 2.0, 2.4),
    Target("latency", STUDENT, "bf16", TRANSFORMERS, "bf16", 1.1, 1.6),
    Target("mixed", STUDENT, "bf16", STUDENT, "fp32", 2.0, 2.5),
    Target("mixed", STUDENT, "fp32", ONNX, "fp32", 1.2, 1.4),
    Target("fixed", STUDENT, "fp32", ONNX, "fp32", 1.15, 1.25),
    Target("latency", STUDENT, "fp32", ONNX, "fp32", 1.0, 1.2),
    Target("mixed", STUDENT, "int8", ONNX, "int8", 1.15, 1.5),
    Target("fixed", STUDENT, "int8", ONNX, "int8", 1.1, 1.25),
    Target("latency", STUDENT, "int8", ONNX, "int8", 1.1, 1.3),
    Target("mixed", STUDENT, "int8", TEACHER, "fp32", 6.0, 8.0),
)

PARTS_HELP = f"parts of the benchmark to run (default: {', '.join(PARTS)})"


@dataclass(frozen=True)
class Options:
    """Every option with its default."""

    teacher: str | None = option(None, "model: path or owner/name (default: random weights)", "input", metavar="MODEL")
    student: str | None = option(None, "model: path or owner/name (default: random weights)", metavar="MODEL")
    text: str | None = option(None, "text file, one line per sequence (default: the demo's text)", metavar="FILE")
    tokenizer: str | None = option(None, "SentencePiece model (default: the student's, or the demo's)", metavar="PATH")
    lines: int = option(256, "number of lines of the text to use, evenly spread", least=1, most=10**6)
    predict_lines: int = option(2048, "number of lines of part predict, evenly spread", least=2, most=10**6)
    longest: int = option(512, "tokens of the longest line, which is made by joining lines", least=3, most=10**5)

    precision: tuple[str, ...] = option(
        ("fp32",), "of the matrix products", "benchmark", nargs="+", choices=INFERENCE_PRECISIONS
    )
    fixed: tuple[int, ...] = option(
        (32, 128), "number and length of the sequences of part fixed", nargs=2, type=int, least=1, most=10**5
    )
    batch_tokens: int = option(BUDGET, "tokens per batch of this project", least=1, most=10**7)
    repetitions: int = option(5, "rounds, of which the median is reported", least=1, most=1000)
    only: tuple[str, ...] = option(PARTS, PARTS_HELP, nargs="+", choices=PARTS, metavar="PART")
    small: bool = option(False, "use tiny models, for a quick test of the command")

    device: str = option("auto", DEVICE_HELP, "device")
    threads: int = option(0, "CPU threads, 0: PyTorch's default", least=0, most=4096)

    log: bool = option(False, f"append the tables to eval/{LOG.name}", "output")
    out: str | None = option(None, "JSON file (default: runs/results/speed-TIME.json)", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        for name in ("precision", "only"):
            values = getattr(self, name)
            check(len(values) == len(set(values)), f"--{name} {' '.join(values)} has duplicates.")
        given = self.teacher or self.student
        check(not (self.small and given), "--small cannot be combined with --teacher or --student.")
        has_tokenizer = self.text is None or self.tokenizer or self.student
        check(bool(has_tokenizer), "--text needs --tokenizer, or --student with a tokenizer beside it.")


# ---- text to token ids -------------------------------------------------------------------------------------------


def read_lines(path: str | None) -> list[str]:
    """The lines of the file that are not blank; by default the demo's texts, truncated to 1, 2, 3, … sentences.

    Raises DataError if the file cannot be read.
    """
    if path is None:
        texts = [re.split(r"(?<=[.?!]) ", text) for text in demo.texts()]
        return [" ".join(sentences[: 1 + i % len(sentences)]) for i, sentences in enumerate(texts)]
    try:
        content = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"--text {path} cannot be read: {error.strerror}.") from None
    return [line for line in content.split("\n") if line and not line.isspace()]


def mixed_texts(lines: Sequence[str], tokenizer: Tokenizer, count: int, longest: int) -> list[list[int]]:
    """The ids of `count` evenly spread lines, with <s> and </s>, truncated to `longest` tokens.

    The middle one is extended to `longest` tokens by the lines after it.  Raises OptionError if the text is too short.
    """
    check(len(lines) >= count, f"--lines {count}: the text has only {len(lines)} lines.")
    indices = [i * len(lines) // count for i in range(count)]
    bodies = [ids[: longest - 2] for ids in tokenizer.encode_plain([lines[index] for index in indices])]
    middle = indices[count // 2]
    following = tokenizer.encode_plain(lines[middle : middle + longest])  # each has at least one token
    joined = list(chain.from_iterable(following))
    enough = len(joined) >= longest - 2
    check(enough, f"--longest {longest}: the second half of the text has only {len(joined) + 2} tokens.")
    bodies[count // 2] = joined[: longest - 2]
    return [[tokenizer.bos_id, *body, tokenizer.eos_id] for body in bodies]


def open_tokenizer(options: Options, student: EncoderConfig) -> Tokenizer:
    """--tokenizer, else the student's; the demo's for the demo's text.  Raises DataError if it does not fit."""
    if not (options.text or options.tokenizer):
        return Tokenizer(demo.FOLDER)
    tokenizer = load_tokenizer(options.tokenizer, options.student)
    check_vocabulary(student, tokenizer)
    return tokenizer


def texts_of_parts(
    options: Options, tokenizer: Tokenizer, lines: Sequence[str], student: EncoderConfig, teacher: EncoderConfig
) -> dict[str, list[list[int]]]:
    """The token ids of each part.  Raises OptionError for a tokenizer or lengths that the models lack."""
    max_tokens = min(student.max_tokens, teacher.max_tokens)
    for name, length in (("--longest", options.longest), ("--fixed", options.fixed[1])):
        check(length <= max_tokens, f"{name} {length}: the models read at most {max_tokens} tokens.")
    size, vocab_size = len(tokenizer), min(student.vocab_size, teacher.vocab_size)
    check(size <= vocab_size, f"The tokenizer {tokenizer.path} has {size} tokens, a model only {vocab_size}.")
    mixed = mixed_texts(lines, tokenizer, options.lines, options.longest)
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randint(student.pad_id + 1, vocab_size, options.fixed, generator=generator).tolist()
    by_length = sorted(mixed, key=lambda ids: abs(len(ids) - SHORT))
    return {"fixed": fixed, "mixed": mixed, "latency": by_length[:1], "memory": by_length[:SENTENCES]}


# ---- agreement ---------------------------------------------------------------------------------------------------


def agreement(actual: list[Tensor], expected: list[Tensor], name: str) -> float:
    """‖h - h_other‖ / ‖h_other‖ over all hidden states of the texts.  Raises ModelError if it is more than rounding."""
    one, other = torch.cat(actual), torch.cat(expected)
    difference = ((one - other).norm() / other.norm()).item()
    if not difference < TOLERANCE:
        raise ModelError(
            f"The hidden states differ from those of {name} by {difference:.1e} of their norm: the two do not "
            f"compute the same, so their speeds cannot be compared. Try another version of {name}."
        )
    return difference


def write_and_compare(
    student: Encoder,
    texts: list[list[int]],
    options: Options,
    folder: Path,
    differences: dict[str, float],
    add: Callable[[str], None],
) -> Files:
    """The files of ONNX Runtime's rows, if it is installed, after some lines were compared; differences: filled.

    Raises ModelError if transformers or ONNX Runtime compute something else.
    """
    sample, device = sorted(texts, key=len)[:: max(1, len(texts) // 8)], student.embeddings.norm.weight.device
    one_batch = [[*range(len(sample))]]
    ours = hidden_states(frozen(student, "fp32"), sample, device, options.batch_tokens)
    graphs: Files = {}
    try:
        model = transformers_model(student).to(device)
        theirs = transformers_states(model, sample, device, one_batch)
        differences["transformers"] = agreement(ours, theirs, "transformers")
    except ImportError:
        add("No rows of transformers, which is not installed: pip install transformers")
    if device.type != "cpu":
        add("No rows of ONNX Runtime, which is compared on a CPU.")
    elif missing := missing_for_onnx():
        add(f"No rows of ONNX Runtime: pip install {' '.join(missing)}")
    elif {"fp32", "int8"} & set(options.precision):
        graphs = write_graphs(student, folder, options.precision)
        (graph,) = graphs["fp32"].values()
        theirs = onnx_states(open_session(graph), sample, student.config.pad_id, one_batch)
        differences[ONNX] = agreement(ours, theirs, ONNX)
    for name, difference in differences.items():
        add(f"Hidden states of {len(sample)} lines agree with those of {name} to {difference:.1e} of their norm.")
    return graphs


def same_predictions(student: Encoder, texts: list[list[int]], device: torch.device, precision: str) -> float:
    """The fraction of texts that a random classifier on the student predicts as in fp32."""
    model, predictions = SequenceClassifier(student.config, 2).eval().requires_grad_(False).to(device), []
    for name in ("fp32", precision):
        model.encoder = frozen(student, name)
        predictions.append(torch.stack(infer(model, texts, Runtime(device))).argmax(dim=1))
    return (predictions[0] == predictions[1]).float().mean().item()


# ---- tables ------------------------------------------------------------------------------------------------------

Rows = dict[str, Row]  # by name, of one part in one precision


def fastest(rows: Rows, prefix: str) -> Row | None:
    """The fastest of the rows whose name begins so, which are one model with several batching strategies."""
    found = [row for name, row in rows.items() if name.startswith(prefix)]
    return min(found, key=lambda row: statistics.median(row.seconds), default=None)


def part_table(part: str, texts: list[list[int]], by_precision: dict[str, Rows], emulated: Iterable[str]) -> str:
    """A table of the time, tok/s and peak memory of a part, and its speed-ups."""
    tokens = sum(map(len, texts))
    titles = {
        "fixed": f"fixed length, {len(texts)} × {len(texts[0])} tokens",
        "mixed": f"mixed lengths, {len(texts)} lines, {tokens:,} tokens, longest {max(map(len, texts))}",
        "latency": f"latency, one sentence of {tokens} tokens",
    }
    speed_ups = "× teacher", "× transformers' best", "× ONNX Runtime's best", "× fp32"
    lines = [[titles[part], "precision", "median", "tok/s", *speed_ups, "peak memory"]]
    for precision, rows in by_precision.items():
        note = " (emulated)" if precision in emulated else ""
        for name, row in rows.items():
            in_fp32 = by_precision.get("fp32", {}).get(name)
            others = rows.get(TEACHER), fastest(rows, TRANSFORMERS), fastest(rows, ONNX), in_fp32
            ratios = [f"{ratio(other, row):.2f}" if other else "" for other in others]
            seconds = statistics.median(row.seconds)
            time = f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
            speed, memory = f"{tokens / seconds:,.0f}", f"{row.peak / 1e9:.2f} GB"
            lines.append([name, precision + note, time, speed, *ratios, memory])
    return table(*lines)


def memory_table(texts: list[list[int]], by_precision: dict[str, Rows]) -> str:
    """A table of the memory that loading a model and reading texts one at a time adds to the imports."""
    lines = [[f"memory, {len(texts)} sentences one at a time", "precision", "peak beyond the imports"]]
    for precision, rows in by_precision.items():
        lines += [[name, precision, f"{row.extra / 1e6:.0f} MB"] for name, row in rows.items()]
    return table(*lines)


def verdicts(part: str, by_precision: dict[str, Rows], emulated: Iterable[str] = ()) -> list[dict]:
    """The targets of this part and whether they are reached; a speed-up counts as printed, with two digits."""
    found = []
    for target in TARGETS:
        row = by_precision.get(target.precision, {}).get(target.name)
        other = fastest(by_precision.get(target.other_precision, {}), target.other)
        if target.part == part and row and other and target.precision not in emulated:
            against = other.name if target.precision == target.other_precision else f"{other.name} in fp32"
            about = {"part": part, "precision": target.precision, "row": row.name, "against": against}
            speed_up = ratio(other, row)
            reached = round(speed_up, 2) >= target.least
            found.append({**about, "ratio": speed_up, "least": target.least, "aim": target.aim, "reached": reached})
    return found


def memory_verdicts(by_precision: dict[str, Rows]) -> list[dict]:
    """The target of a process that serves the student in int8."""
    row = by_precision.get("int8", {}).get(STUDENT)
    about = {"part": "memory", "precision": "int8", "row": STUDENT, "most": MEMORY, "aim": MEMORY_AIM}
    return [{**about, "bytes": row.extra, "reached": row.extra <= MEMORY}] if row else []


def verdict_line(verdict: dict) -> str:
    reached = "reached" if verdict["reached"] else "not reached"
    subject = f"- {verdict['part']}, {verdict['precision']}: {verdict['row']}"
    if "bytes" in verdict:
        size, most, aim = (f"{verdict[key] / 1e6:.0f} MB" for key in ("bytes", "most", "aim"))
        return f"{subject} {size} (at most {most}, goal {aim}): {reached}"
    if "share" in verdict:
        share, least, aim = (f"{verdict[key]:.1%}" for key in ("share", "least", "aim"))
        return f"{subject} {share} of the model's own rate (minimum {least}, goal {aim}): {reached}"
    least, aim = verdict["least"], verdict["aim"]
    target = f"minimum {least:.2f}" + (f", goal {aim:.2f}" if aim > least else "")
    return f"{subject} {verdict['ratio']:.2f} × as fast as {verdict['against']} ({target}): {reached}"


def share_line(precision: str, share: float, number: int, trained: bool) -> str:
    same = f"- {precision}: {share:.2%} of {number} predictions are the same as in fp32"
    if not trained:
        return f"{same} (of random weights, which need not be sure of any)"
    least = SAME_PREDICTIONS[precision]
    return f"{same} (minimum {least:.1%}): {'reached' if share >= least else 'not reached'}"


# ---- the command -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """The command.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, "python -m eval speed [OPTIONS]", __doc__)
    options = fetch_models(options, "teacher", "student", "tokenizer")
    check_paths(options, "text")
    report = heading("speed", options, arguments)
    device = choose_device(options.device)
    for precision in options.precision:
        choose_precision(precision, device)
    emulated = {"bf16"} & set(options.precision) if choose_precision("auto", device) != "bf16" else set()
    torch.manual_seed(0)
    student_config, teacher_config = configs(options.small)
    student = load_encoder(options.student, student_config)
    if options.teacher:
        teacher_config = load_encoder(options.teacher, teacher_config).config
    text, tokenizer = read_lines(options.text), open_tokenizer(options, student.config)
    texts = texts_of_parts(options, tokenizer, text, student.config, teacher_config)
    out = options.out or f"runs/results/speed-{datetime.now():%Y%m%d-%H%M%S}.json"
    check_writable(out)
    given = (options.teacher, options.student, options.text, options.tokenizer)
    about = provenance(command_line("speed", arguments), options, [p for p in given if p and Path(p).is_file()], [0])
    measured, found, shares, differences = {}, [], {}, {}
    say("\n\n".join(report))

    def add(block: str) -> None:
        """Writes all that is measured so far, then prints the block."""
        report.append(block)
        rows = {"rows": measured, "verdicts": found, "equal predictions": shares}
        write_json(out, {"differences": differences, **rows, **about})
        say("\n" + block)

    student = student.to(device)
    if emulated:
        add("This machine emulates bf16: its speed in bf16 is not representative.")
    with tempfile.TemporaryDirectory(prefix="speed-") as folder:
        graphs = write_and_compare(student, texts["mixed"], options, Path(folder), differences, add)
        if "predict" in options.only:
            write_inputs(student, tokenizer, text, options.predict_lines, Path(folder))
        for part in options.only:
            jobs = []
            for precision in options.precision:
                others = graphs.get(precision, {})
                if part == "memory":
                    jobs += memory_jobs(Path(folder), student, texts[part], precision, others)
                elif part == "predict":
                    jobs += predict_jobs(Path(folder), precision)
                else:
                    with_transformers = "transformers" in differences
                    pad_id = student.config.pad_id
                    jobs += jobs_of(part, texts[part], precision, with_transformers, others, pad_id)
            by_precision: dict[str, Rows] = {name: {} for name in options.precision}
            for job, row in zip(jobs, measure(jobs, options), strict=True):
                if part == "latency":
                    row.seconds = [seconds / REPEATS for seconds in row.seconds]
                by_precision[job.precision][row.name] = row
            measured[part] = {name: [asdict(row) for row in rows.values()] for name, rows in by_precision.items()}
            if part == "memory":
                found += memory_verdicts(by_precision)
                add(memory_table(texts[part], by_precision))
            elif part == "predict":
                found += predict_verdicts(by_precision)
                add(predict_table(options.predict_lines, by_precision))
            else:
                found += verdicts(part, by_precision, emulated)
                add(part_table(part, texts[part], by_precision, emulated))
    others = [name for name in options.precision if name != "fp32" and "fp32" in options.precision]
    shares |= {name: same_predictions(student, texts["mixed"], device, name) for name in others}
    same = (share_line(*item, len(texts["mixed"]), bool(options.student)) for item in shares.items())
    lines = [*map(verdict_line, found), *same]
    if lines:
        add("\n".join(lines))

    say(f"\nWrote {out}.")
    if options.log:
        append_to_log(LOG, report)
