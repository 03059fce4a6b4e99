"""Benchmark of inference: the student compared with its teacher, and with transformers if it is installed.

fixed: sequences of one length; mixed: real lines of many lengths; latency: one short sentence at a time. Rows run in
alternation, each in its own process. transformers runs a CamembertModel with the student's weights and PyTorch's scaled
dot-product attention, its fastest; this project runs without padding. Both return the last hidden state of every token.
The speed does not depend on the values of the weights, which may be random.
"""

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from data import demo
from data.cli import DataError, check, check_bounds, check_paths, note, option, parse_options, say
from data.download.models import fetch_models
from data.features import budget_batches
from data.tokenizer import Tokenizer
from model import Encoder, EncoderConfig, ModelError, SequenceClassifier, encode_packed
from model.checkpoints.export import huggingface_config, to_huggingface
from model.checkpoints.load import check_vocabulary, load_checkpoint, load_tokenizer
from model.checkpoints.native import PRECISIONS
from model.training.device import DEVICE_HELP, Runtime, choose_device, choose_precision

from ..results import check_writable, command_line, provenance, write_json
from ..tasks.batching import BUDGET, infer
from .harness import LOG, Job, Row, Run, append_to_log, configs, heading, measure, ratio, table

PARTS = ("fixed", "mixed", "latency")
TEACHER, STUDENT, TRANSFORMERS = "teacher", "student", "transformers' student"
BATCH = 32  # lines per batch of transformers
SHORT = 20  # tokens of the sentence whose latency is measured
REPEATS = 20  # runs of it per round, so that a round is long enough to be timed
TOLERANCE = 1e-4  # ‖h - h_transformers‖ / ‖h_transformers‖ in fp32; 1e-6 was measured
TARGETS = (  # part, row, the row it is compared with, minimum and goal of the speed-up
    ("fixed", STUDENT, TEACHER, 1.95, 1.95),
    ("fixed", STUDENT, TRANSFORMERS, 1.0, 1.0),
    ("mixed", STUDENT, TRANSFORMERS, 1.7, 2.2),
    ("latency", STUDENT, TRANSFORMERS, 1.0, 1.0),
)
SAME_PREDICTIONS = 0.995  # minimum fraction of predictions that are the same in another precision


@dataclass(frozen=True)
class Options:
    """Every option with its default."""

    teacher: str | None = option(None, "model: path or owner/name (default: random weights)", "input", metavar="MODEL")
    student: str | None = option(None, "model: path or owner/name (default: random weights)", metavar="MODEL")
    text: str | None = option(None, "text file, one line per sequence (default: the demo's text)", metavar="FILE")
    tokenizer: str | None = option(None, "SentencePiece model (default: the student's, or the demo's)", metavar="PATH")
    lines: int = option(256, "number of lines of the text to use, evenly spread", least=1, most=10**6)
    longest: int = option(512, "tokens of the longest line, which is made by joining lines", least=3, most=10**5)

    precision: tuple[str, ...] = option(("fp32",), "of the matrix products", "benchmark", nargs="+", choices=PRECISIONS)
    fixed: tuple[int, ...] = option(
        (32, 128), "number and length of the sequences of part fixed", nargs=2, type=int, least=1, most=10**5
    )
    batch_tokens: int = option(BUDGET, "tokens per batch of this project", least=1, most=10**7)
    repetitions: int = option(5, "rounds, of which the median is reported", least=1, most=1000)
    only: tuple[str, ...] = option(PARTS, "parts of the benchmark to run", nargs="+", choices=PARTS)
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


def texts_of_parts(options: Options, student: EncoderConfig, teacher: EncoderConfig) -> dict[str, list[list[int]]]:
    """The token ids of each part.  Raises DataError, OptionError for a tokenizer or lengths that the models lack."""
    max_tokens = min(student.max_tokens, teacher.max_tokens)
    for name, length in (("--longest", options.longest), ("--fixed", options.fixed[1])):
        check(length <= max_tokens, f"{name} {length}: the models read at most {max_tokens} tokens.")
    if options.text or options.tokenizer:
        tokenizer = load_tokenizer(options.tokenizer, options.student)
        check_vocabulary(student, tokenizer)
    else:
        tokenizer = Tokenizer(demo.FOLDER)
    size, vocab_size = len(tokenizer), min(student.vocab_size, teacher.vocab_size)
    check(size <= vocab_size, f"The tokenizer {tokenizer.path} has {size} tokens, a model only {vocab_size}.")
    mixed = mixed_texts(read_lines(options.text), tokenizer, options.lines, options.longest)
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randint(student.pad_id + 1, vocab_size, options.fixed, generator=generator).tolist()
    return {"fixed": fixed, "mixed": mixed, "latency": [min(mixed, key=lambda ids: abs(len(ids) - SHORT))]}


# ---- jobs --------------------------------------------------------------------------------------------------------


def load_encoder(path: str | None, config: EncoderConfig, report: Callable[[str], None] = note) -> Encoder:
    """The encoder in the file, or a random one, for inference.  Raises ModelError."""
    model = Encoder(config) if path is None else load_checkpoint(path, report, kind=Encoder).float()
    return model.eval().requires_grad_(False)


def transformers_model(encoder: Encoder) -> nn.Module:
    """The same encoder in transformers.  Raises ImportError without transformers."""
    from transformers import CamembertConfig, CamembertModel

    config = CamembertConfig(**huggingface_config(encoder), attn_implementation="sdpa")
    model = CamembertModel(config, add_pooling_layer=False)
    model.load_state_dict(to_huggingface(encoder))
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def hidden_states(encoder: Encoder, texts: Sequence[Sequence[int]], runtime: Runtime, budget: int) -> list[Tensor]:
    """The last hidden state of each text, (n, d_h), batched as `infer` does: without padding, sorted by length."""
    states: dict[int, Tensor] = {}
    for batch in budget_batches([len(ids) for ids in texts], budget):
        input_ids = torch.tensor(list(chain.from_iterable(texts[i] for i in batch))).to(runtime.device)
        seqlens = [len(texts[i]) for i in batch]
        with runtime.autocast():
            hidden = encode_packed(encoder, input_ids, seqlens)  # (T, d_h)
        states.update(zip(batch, hidden.split(seqlens)))
    return [states[i] for i in range(len(texts))]


@torch.inference_mode()
def transformers_states(
    model: nn.Module, texts: Sequence[Sequence[int]], runtime: Runtime, batches: Iterable[Sequence[int]]
) -> list[Tensor]:
    """The same with transformers, each batch padded to its longest text; a mask only if there is padding."""
    states: dict[int, Tensor] = {}
    pad_id = model.config.pad_token_id
    for batch in batches:
        seqlens = [len(texts[i]) for i in batch]
        rows = [[*texts[i], *[pad_id] * (max(seqlens) - len(texts[i]))] for i in batch]
        input_ids = torch.tensor(rows).to(runtime.device)
        mask = (input_ids != pad_id).long() if min(seqlens) < max(seqlens) else None
        hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state  # (B, n, d_h)
        states.update((i, row[: len(texts[i])]) for i, row in zip(batch, hidden))
    return [states[i] for i in range(len(texts))]


def batching_strategies(lengths: Sequence[int]) -> dict[str, list[list[int]]]:
    """Batches of texts of these lengths, as indices, in the three ways that are usual with transformers."""
    given, starts = list(range(len(lengths))), range(0, len(lengths), BATCH)
    by_length = sorted(given, key=lengths.__getitem__)
    return {
        f"batches of {BATCH} as given": [given[start : start + BATCH] for start in starts],
        f"batches of {BATCH} sorted by length": [by_length[start : start + BATCH] for start in starts],
        "one by one": [[i] for i in given],
    }


def repeat(compute_states: Callable[[], list[Tensor]], times: int) -> None:
    """Runs the function several times, and each time waits for its last number."""
    for _ in range(times):
        compute_states()[-1][-1, -1].item()


def project_row(options: Options, runtime: Runtime, name: str, texts: list[list[int]], times: int) -> Run:
    """The teacher or the student in this project."""
    student, teacher = configs(options.small)
    path, config = (options.teacher, teacher) if name == TEACHER else (options.student, student)
    encoder = load_encoder(path, config, lambda line: None).to(runtime.device)
    return partial(repeat, partial(hidden_states, encoder, texts, runtime, options.batch_tokens), times)


def transformers_row(options: Options, runtime: Runtime, texts: list, batches: list[list[int]], times: int) -> Run:
    """The student in transformers, wholly in the precision: autocast would cast its weights at every call."""
    encoder = load_encoder(options.student, configs(options.small)[0], lambda line: None)
    model = transformers_model(encoder).to(runtime.device, PRECISIONS[runtime.precision])
    return partial(repeat, partial(transformers_states, model, texts, runtime, batches), times)


def jobs_of(part: str, texts: list[list[int]], precision: str, with_transformers: bool) -> list[Job]:
    times = REPEATS if part == "latency" else 1
    jobs = [Job(name, project_row, precision, (name, texts, times)) for name in (TEACHER, STUDENT)]
    if with_transformers and part == "mixed":
        for strategy, batches in batching_strategies([len(ids) for ids in texts]).items():
            jobs.append(Job(f"{TRANSFORMERS}, {strategy}", transformers_row, precision, (texts, batches, times)))
    elif with_transformers:
        jobs.append(Job(TRANSFORMERS, transformers_row, precision, (texts, [[*range(len(texts))]], times)))
    return jobs


# ---- agreement ---------------------------------------------------------------------------------------------------


def agreement(student: Encoder, texts: list[list[int]], runtime: Runtime, budget: int) -> float:
    """‖h - h_transformers‖ / ‖h_transformers‖ over all hidden states of the texts, in fp32.

    Raises ModelError if they differ by more than rounding, ImportError without transformers.
    """
    model, one_batch = transformers_model(student).to(runtime.device), [[*range(len(texts))]]
    expected = torch.cat(transformers_states(model, texts, runtime, one_batch))
    actual = torch.cat(hidden_states(student, texts, runtime, budget))
    difference = ((actual - expected).norm() / expected.norm()).item()
    if not difference < TOLERANCE:
        raise ModelError(
            f"The hidden states differ from those of transformers by {difference:.1e} of their norm: the two do not "
            "compute the same, so their speeds cannot be compared. Try another version of transformers."
        )
    return difference


def same_predictions(student: Encoder, texts: list[list[int]], device: torch.device, precision: str) -> float:
    """The fraction of texts that a random classifier on the student predicts as in fp32."""
    model = SequenceClassifier(student.config, 2)
    model.encoder = student
    model.eval().requires_grad_(False).to(device)
    one, other = (torch.stack(infer(model, texts, Runtime(device, name))).argmax(dim=1) for name in ("fp32", precision))
    return (one == other).float().mean().item()


# ---- tables ------------------------------------------------------------------------------------------------------

Rows = dict[str, Row]  # by name, of one part in one precision


def fastest(rows: Rows, prefix: str) -> Row | None:
    """The fastest of the rows whose name begins so, which are one model with several batching strategies."""
    found = [row for name, row in rows.items() if name.startswith(prefix)]
    return min(found, key=lambda row: statistics.median(row.seconds), default=None)


def part_table(part: str, texts: list[list[int]], by_precision: dict[str, Rows], emulated: Iterable[str]) -> str:
    """A table of the time, tok/s and peak memory of a part, and speed-ups over teacher, transformers and fp32."""
    tokens = sum(map(len, texts))
    titles = {
        "fixed": f"fixed length, {len(texts)} × {len(texts[0])} tokens",
        "mixed": f"mixed lengths, {len(texts)} lines, {tokens:,} tokens, longest {max(map(len, texts))}",
        "latency": f"latency, one sentence of {tokens} tokens",
    }
    speed_ups = "× teacher", "× transformers' best", "× fp32"
    lines = [[titles[part], "precision", "median", "tok/s", *speed_ups, "peak memory"]]
    for precision, rows in by_precision.items():
        note = " (emulated)" if precision in emulated else ""
        for name, row in rows.items():
            others = rows.get(TEACHER), fastest(rows, TRANSFORMERS), by_precision.get("fp32", {}).get(name)
            ratios = [f"{ratio(other, row):.2f}" if other else "" for other in others]
            seconds = statistics.median(row.seconds)
            time = f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
            speed, memory = f"{tokens / seconds:,.0f}", f"{row.peak / 1e9:.2f} GB"
            lines.append([name, precision + note, time, speed, *ratios, memory])
    return table(*lines)


def verdicts(part: str, precision: str, rows: Rows) -> list[dict]:
    """The targets of this part and whether they are reached; a speed-up counts as printed, with two digits."""
    found = []
    for target_part, name, other_name, least, aim in TARGETS:
        other = fastest(rows, other_name)
        if target_part == part and other:
            speed_up = ratio(other, rows[name])
            about = {"part": part, "precision": precision, "row": name, "against": other.name, "ratio": speed_up}
            found.append({**about, "least": least, "aim": aim, "reached": round(speed_up, 2) >= least})
    return found


def verdict_line(verdict: dict) -> str:
    part, precision, row, against, ratio, least, aim, reached = verdict.values()
    target = f"minimum {least:.2f}" + (f", goal {aim:.2f}" if aim > least else "")
    speed_up = f"- {part}, {precision}: {row} {ratio:.2f} × as fast as {against}"
    return f"{speed_up} ({target}): {'reached' if reached else 'not reached'}"


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
    texts = texts_of_parts(options, student.config, teacher_config)
    out = options.out or f"runs/results/speed-{datetime.now():%Y%m%d-%H%M%S}.json"
    check_writable(out)
    given = (options.teacher, options.student, options.text, options.tokenizer)
    about = provenance(command_line("speed", arguments), options, [p for p in given if p and Path(p).is_file()], [0])
    measured, found, shares = {}, [], {}
    say("\n\n".join(report))

    def add(block: str) -> None:
        """Writes all that is measured so far, then prints the block."""
        report.append(block)
        rows = {"rows": measured, "verdicts": found, "equal predictions": shares}
        write_json(out, {"difference": difference, **rows, **about})
        say("\n" + block)

    runtime, student = Runtime(device), student.to(device)
    sample = sorted(texts["mixed"], key=len)[:: max(1, len(texts["mixed"]) // 8)]
    difference = None
    try:
        difference = agreement(student, sample, runtime, options.batch_tokens)
        add(f"Hidden states of {len(sample)} lines agree with transformers' to {difference:.1e} of their norm.")
    except ImportError:
        add("No rows of transformers, which is not installed: pip install transformers")
    if emulated:
        add("This machine emulates bf16: its speed in bf16 is not representative.")

    for part in options.only:
        jobs = [job for name in options.precision for job in jobs_of(part, texts[part], name, difference is not None)]
        by_precision: dict[str, Rows] = {name: {} for name in options.precision}
        for job, row in zip(jobs, measure(jobs, options), strict=True):
            if part == "latency":
                row.seconds = [seconds / REPEATS for seconds in row.seconds]
            by_precision[job.precision][row.name] = row
        measured[part] = {name: [asdict(row) for row in rows.values()] for name, rows in by_precision.items()}
        for precision, rows in by_precision.items():
            found += [] if precision in emulated else verdicts(part, precision, rows)
        add(part_table(part, texts[part], by_precision, emulated))
    others = [name for name in options.precision if name != "fp32" and "fp32" in options.precision]
    shares |= {name: same_predictions(student, texts["mixed"], device, name) for name in others}
    verdict_lines = [verdict_line(verdict) for verdict in found]
    for name, share in shares.items():
        same = f"- {name}: {share:.2%} of {len(texts['mixed'])} predictions are the same as in fp32"
        reached = "reached" if share >= SAME_PREDICTIONS else "not reached"
        verdict_lines.append(f"{same} (minimum {SAME_PREDICTIONS:.1%}): {reached}")
    if verdict_lines:
        add("\n".join(verdict_lines))

    say(f"\nWrote {out}.")
    if options.log:
        append_to_log(LOG, report)
