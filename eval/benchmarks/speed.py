"""How fast a model reads: the student beside its teacher, and beside transformers where that is installed.

fixed: texts of one length; mixed: real lines of many lengths, as they come; latency: one short sentence at a time.
The rows run in processes of their own, in turn, round by round. Transformers' model is a bare CamembertModel with the
student's own weights and PyTorch's attention, its fastest setting; ours goes without padding, as everywhere in here.
Both give the last hidden state of every token. A speed does not depend on the weights' values: they may be random.
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

from data import DataError, OptionError, Tokenizer, demo
from data.cli import check, check_bounds, option, parse_options
from data.features import budget_batches
from model import Encoder, EncoderConfig, ModelError, SequenceClassifier, encode_packed
from model.checkpoints.export import huggingface_config, to_huggingface
from model.checkpoints.load import check_vocabulary, load_checkpoint, load_tokenizer, print_note
from model.checkpoints.native import PRECISIONS
from model.training.device import Runtime, choose_device, choose_precision

from ..results import command_line, provenance, write_json
from ..tasks.batching import BUDGET, infer
from .harness import LOG, Job, Row, append_to, configs, heading, measure, ratio, table

PARTS = ("fixed", "mixed", "latency")
TEACHER, STUDENT, THEIRS = "our teacher", "our student", "transformers' student"
BATCH = 32  # lines at once, for transformers
SHORT = 20  # tokens of the sentence whose latency is measured
TIMES = 20  # that it is read in a round: one time is too short for a clock
AGREE = 1e-4  # ‖ours - theirs‖ / ‖theirs‖ in fp32 at most; 1e-6 was seen
WANTED = (  # part, row, what it is compared with, how many times as fast it shall be, and what is aimed at
    ("fixed", STUDENT, TEACHER, 1.95, 1.95),
    ("fixed", STUDENT, THEIRS, 1.0, 1.0),
    ("mixed", STUDENT, THEIRS, 1.7, 2.2),
    ("latency", STUDENT, THEIRS, 1.0, 1.0),
)
EQUAL = 0.995  # of the predictions, in another precision


@dataclass(frozen=True)
class Options:
    """What is measured."""

    teacher: str | None = option(None, "a model, ours or Hugging Face's (default: random, of Table 1)",
                                 "what is measured", metavar="FILE")  # fmt: skip
    student: str | None = option(None, "the same (default: random, of Table 1)", metavar="FILE")
    text: str | None = option(None, "a text a line (default: the demo's)", metavar="FILE")
    tokenizer: str | None = option(None, "SentencePiece model, or its folder (default: the one beside the student, "
                                   "or the demo's for its own texts)", metavar="FILE")  # fmt: skip
    lines: int = option(256, "of the text, evenly spread", least=1, most=10**6)
    longest: int = option(512, "tokens of one line, which its neighbours are joined to", least=3, most=10**5)
    fixed: tuple[int, ...] = option((32, 128), "texts and tokens of the fixed length", nargs=2, type=int, least=1,
                                    most=10**5)  # fmt: skip
    precision: tuple[str, ...] = option(("fp32",), "arithmetic of the matrix products", nargs="+",
                                        choices=tuple(PRECISIONS))  # fmt: skip
    batch_tokens: int = option(BUDGET, "tokens that go through our model together", least=1, most=10**7)
    repetitions: int = option(5, "rounds, of which the median is shown", least=1, most=1000)
    only: tuple[str, ...] = option(PARTS, "parts", nargs="+", choices=PARTS)
    small: bool = option(False, "tiny models: to see that it runs")
    device: str = option("auto", "auto (CUDA where there is one, else CPU), cpu, cuda, cuda:1, …", "the machine")
    threads: int = option(0, "of the CPU, 0 for PyTorch's choice", least=0, most=4096)
    log: bool = option(False, f"append the tables to eval/{LOG.name}", "the result")
    out: str | None = option(None, "JSON file (default: runs/results/speed-TIME.json)", metavar="FILE")

    def __post_init__(self):
        check_bounds(self)
        for name in ("precision", "only"):
            values = getattr(self, name)
            check(len(values) == len(set(values)), f"--{name} names {' '.join(values)}: each once is enough.")
        check(not self.small or self.teacher is self.student is None, "--small goes without --teacher and --student.")
        named = self.text is None or self.tokenizer or self.student
        check(bool(named), "--text needs the tokenizer that cuts it up: name it with --tokenizer.")


# ---- what is read ------------------------------------------------------------------------------------------------


def read_lines(options: Options) -> list[str]:
    """The file's lines that are not blank; without one, the demo's texts, cut to one sentence, to two, to three, …

    Raises DataError.
    """
    if options.text is None:
        texts = [re.split(r"(?<=[.?!]) ", text) for text in demo.texts()]
        return [" ".join(sentences[: 1 + i % len(sentences)]) for i, sentences in enumerate(texts)]
    try:
        content = Path(options.text).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"--text {options.text} cannot be read: {error.strerror}.") from None
    return [line for line in content.split("\n") if line and not line.isspace()]


def mixed_texts(lines: Sequence[str], tokenizer: Tokenizer, count: int, longest: int) -> list[list[int]]:
    """`count` of the lines, evenly spread, as ids with <s> and </s>, none longer than `longest` tokens.

    The one in the middle is lengthened to just that by the lines after it.  Raises OptionError for too little text.
    """
    check(len(lines) >= count, f"--lines {count}: the text has only {len(lines)}.")
    places = [i * len(lines) // count for i in range(count)]
    bodies = [ids[: longest - 2] for ids in tokenizer.encode_plain([lines[place] for place in places])]
    joined: list[int] = []
    for line in lines[places[count // 2] :]:
        joined += tokenizer.encode_plain([line])[0]
        if len(joined) >= longest - 2:
            break
    else:
        raise OptionError(f"--longest {longest}: half of the text has only {len(joined) + 2} tokens.")
    bodies[count // 2] = joined[: longest - 2]
    return [[tokenizer.bos_id, *body, tokenizer.eos_id] for body in bodies]


def texts_of(options: Options, student: EncoderConfig, teacher: EncoderConfig) -> dict[str, list[list[int]]]:
    """What is read in each part.  Raises DataError, OptionError for what the models cannot read."""
    for name, length in (("--longest", options.longest), ("--fixed", options.fixed[1])):
        most = min(student.max_tokens, teacher.max_tokens)
        check(length <= most, f"{name} {length}: the models read at most {most} tokens.")
    words = min(student.vocab_size, teacher.vocab_size)
    if options.text or options.tokenizer:
        tokenizer = load_tokenizer(options.tokenizer, options.student)
        check_vocabulary(student, tokenizer)
    else:
        tokenizer = Tokenizer(demo.FOLDER)
    check(len(tokenizer) <= words, f"The tokenizer {tokenizer.path} has {len(tokenizer)} words, a model only {words}.")
    mixed = mixed_texts(read_lines(options), tokenizer, options.lines, options.longest)
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randint(student.pad_id + 1, words, options.fixed, generator=generator).tolist()
    return {"fixed": fixed, "mixed": mixed, "latency": [min(mixed, key=lambda ids: abs(len(ids) - SHORT))]}


# ---- what the rows run -------------------------------------------------------------------------------------------


def encoder_of(path: str | None, config: EncoderConfig, report: Callable[[str], None]) -> Encoder:
    """That of the file, or a random one.  Raises ModelError."""
    model = Encoder(config) if path is None else load_checkpoint(path, report, kind=Encoder).float()
    return model.eval().requires_grad_(False)


def their_model(encoder: Encoder) -> nn.Module:
    """The same encoder in transformers.  Raises ImportError where that is missing."""
    from transformers import CamembertConfig, CamembertModel

    config = CamembertConfig(**huggingface_config(encoder), attn_implementation="sdpa")
    model = CamembertModel(config, add_pooling_layer=False)
    model.load_state_dict(to_huggingface(encoder))
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def our_states(encoder: Encoder, texts: Sequence[Sequence[int]], runtime: Runtime, budget: int) -> list[Tensor]:
    """The last hidden states of each text, (n, d_h), in the way of `infer`: without padding, sorted by length."""
    states: dict[int, Tensor] = {}
    for batch in budget_batches([len(ids) for ids in texts], budget):
        input_ids = torch.tensor(list(chain.from_iterable(texts[i] for i in batch))).to(runtime.device)
        lengths = [len(texts[i]) for i in batch]
        with runtime.autocast():
            hidden = encode_packed(encoder, input_ids, lengths)  # (T, d_h)
        states.update(zip(batch, hidden.split(lengths)))
    return [states[i] for i in range(len(texts))]


@torch.inference_mode()
def their_states(
    model: nn.Module, texts: Sequence[Sequence[int]], runtime: Runtime, batches: Iterable[Sequence[int]]
) -> list[Tensor]:
    """The same by transformers, padded to the longest of each batch; with a mask only where there is padding."""
    states: dict[int, Tensor] = {}
    for batch in batches:
        most = max(len(texts[i]) for i in batch)
        rows = [[*texts[i], *[model.config.pad_token_id] * (most - len(texts[i]))] for i in batch]
        input_ids = torch.tensor(rows).to(runtime.device)
        padded = min(len(texts[i]) for i in batch) < most
        mask = (input_ids != model.config.pad_token_id).long() if padded else None
        hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state  # (B, n, d_h)
        states.update((i, row[: len(texts[i])]) for i, row in zip(batch, hidden))
    return [states[i] for i in range(len(texts))]


def their_ways(lengths: Sequence[int]) -> dict[str, list[list[int]]]:
    """How texts of these lengths are put into batches: by the numbers of the texts."""

    def batches(order: Sequence[int]) -> list[list[int]]:
        return [list(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]

    return {
        f"batches of {BATCH} as given": batches(range(len(lengths))),
        f"batches of {BATCH} sorted by length": batches(sorted(range(len(lengths)), key=lengths.__getitem__)),
        "one by one": [[i] for i in range(len(lengths))],
    }


def again(states: Callable[[], list[Tensor]], times: int) -> None:
    """Each time until the last number is there."""
    for _ in range(times):
        states()[-1][-1, -1].item()


def our_row(options: Options, runtime: Runtime, which: str, texts: list[list[int]], times: int) -> Callable[[], None]:
    student, teacher = configs(options.small)
    path, config = (options.teacher, teacher) if which == TEACHER else (options.student, student)
    encoder = encoder_of(path, config, lambda line: None).to(runtime.device)
    return partial(again, partial(our_states, encoder, texts, runtime, options.batch_tokens), times)


def their_row(
    options: Options, runtime: Runtime, texts: list[list[int]], batches: list[list[int]], times: int
) -> Callable[[], None]:
    """All of the model in the precision, so that no weight is cast again and again."""
    encoder = encoder_of(options.student, configs(options.small)[0], lambda line: None)
    model = their_model(encoder).to(runtime.device, PRECISIONS[runtime.precision])
    return partial(again, partial(their_states, model, texts, runtime, batches), times)


def jobs_of(part: str, texts: list[list[int]], precision: str, with_theirs: bool) -> list[Job]:
    times = TIMES if part == "latency" else 1
    jobs = [Job(which, our_row, precision, (which, texts, times)) for which in (TEACHER, STUDENT)]
    if with_theirs and part == "mixed":
        for way, batches in their_ways([len(ids) for ids in texts]).items():
            jobs.append(Job(f"{THEIRS}, {way}", their_row, precision, (texts, batches, times)))
    elif with_theirs:
        jobs.append(Job(THEIRS, their_row, precision, (texts, [[*range(len(texts))]], times)))
    return jobs


# ---- before and after the clock ----------------------------------------------------------------------------------


def agreement(student: Encoder, texts: list[list[int]], runtime: Runtime, budget: int) -> float:
    """‖ours - theirs‖ / ‖theirs‖ over every hidden state of the texts, in fp32.

    Raises ModelError where they are not the same to rounding, ImportError where transformers is missing.
    """
    theirs = torch.cat(their_states(their_model(student).to(runtime.device), texts, runtime, [[*range(len(texts))]]))
    difference = ((torch.cat(our_states(student, texts, runtime, budget)) - theirs).norm() / theirs.norm()).item()
    if not difference < AGREE:
        raise ModelError(
            f"Ours and transformers' hidden states differ by {difference:.1e} of their size: they do not compute the "
            "same, and their speeds cannot be compared. Does the model need another transformers?"
        )
    return difference


def equal_predictions(student: Encoder, texts: list[list[int]], device: torch.device, precision: str) -> float:
    """The share of texts for which a random classifier on the student finds in both precisions the same."""
    model = SequenceClassifier(student.config, 2)
    model.encoder = student
    model.eval().requires_grad_(False).to(device)
    one, other = (torch.stack(infer(model, texts, Runtime(device, name))).argmax(dim=1) for name in ("fp32", precision))
    return (one == other).float().mean().item()


# ---- tables ------------------------------------------------------------------------------------------------------

Rows = dict[str, Row]  # by name, of one part in one precision


def best_of(rows: Rows, start: str) -> Row | None:
    """The fastest of the rows whose name begins so: of one model's ways, the best."""
    found = [row for name, row in rows.items() if name.startswith(start)]
    return min(found, key=lambda row: statistics.median(row.seconds), default=None)


def part_table(part: str, texts: list[list[int]], by_precision: dict[str, Rows], imitated: Iterable[str]) -> str:
    """Time and tokens a second, and how many times as fast as the teacher, as transformers at its best, as in fp32."""
    tokens = sum(map(len, texts))
    titles = {
        "fixed": f"fixed length, {len(texts)} × {len(texts[0])} tokens",
        "mixed": f"mixed lengths, {len(texts)} lines, {tokens:,} tokens, longest {max(map(len, texts))}",
        "latency": f"latency, one sentence of {tokens} tokens",
    }
    lines = [[titles[part], "precision", "median", "tokens/s", "× teacher", "× transformers' best", "× fp32", "memory"]]
    for precision, rows in by_precision.items():
        for name, row in rows.items():
            others = rows.get(TEACHER), best_of(rows, THEIRS), by_precision.get("fp32", {}).get(name)
            seconds = statistics.median(row.seconds)
            lines.append([
                name,
                precision + (" (imitated)" if precision in imitated else ""),
                f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s",
                f"{tokens / seconds:,.0f}",
                *(f"{ratio(other, row):.2f}" if other else "" for other in others),
                f"{row.peak / 1e9:.2f} GB",
            ])  # fmt: skip
    return table(*lines)


def verdicts(part: str, precision: str, rows: Rows) -> list[dict]:
    """What is wanted of this part and can be told from its rows. A ratio counts as it is shown, with two digits."""
    found = []
    for wanted_part, name, other_name, least, aim in WANTED:
        other = best_of(rows, other_name)
        if wanted_part == part and other:
            found.append({
                "part": part, "precision": precision, "row": name, "against": other.name,
                "ratio": ratio(other, rows[name]), "least": least, "aim": aim,
                "reached": round(ratio(other, rows[name]), 2) >= least,
            })  # fmt: skip
    return found


def verdict_line(verdict: dict) -> str:
    wanted = f"at least {verdict['least']:.2f}"
    if verdict["aim"] > verdict["least"]:
        wanted += f", aim {verdict['aim']:.2f}"
    return (
        f"- {verdict['part']}, {verdict['precision']}: {verdict['row']} {verdict['ratio']:.2f} × as fast as "
        f"{verdict['against']} ({wanted}): {'reached' if verdict['reached'] else 'not reached'}"
    )


# ---- the command -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """The command.  Raises OptionError, DataError, ModelError."""
    options = parse_options(Options, arguments, "python -m eval speed [OPTIONS]", __doc__)
    report = heading("speed", options, arguments)
    device = choose_device(options.device)
    for precision in options.precision:
        choose_precision(precision, device)
    no_bf16 = "bf16" in options.precision and choose_precision("auto", device) != "bf16"
    imitated = {"bf16"} if no_bf16 else set()
    torch.manual_seed(0)
    student_config, teacher_config = configs(options.small)
    student = encoder_of(options.student, student_config, print_note)
    if options.teacher:
        teacher_config = encoder_of(options.teacher, teacher_config, print_note).config
    texts = texts_of(options, student.config, teacher_config)
    print("\n\n".join(report), flush=True)

    def say(block: str) -> None:
        report.append(block)
        print("\n" + block, flush=True)

    runtime, student = Runtime(device), student.to(device)
    sample = sorted(texts["mixed"], key=len)[:: max(1, len(texts["mixed"]) // 8)]
    difference, with_theirs = None, True
    try:
        difference = agreement(student, sample, runtime, options.batch_tokens)
        say(
            f"Ours and transformers' hidden states of {len(sample)} lines agree: they differ by {difference:.1e} "
            "of their size."
        )
    except ImportError:
        with_theirs = False
        say("transformers is missing, and so are its rows; `pip install transformers` brings them.")
    if imitated:
        say("This machine has no bf16 arithmetic and imitates it: its speed in bf16 says nothing.")

    measured, found = {}, []
    for part in options.only:
        jobs = [job for name in options.precision for job in jobs_of(part, texts[part], name, with_theirs)]
        by_precision: dict[str, Rows] = {name: {} for name in options.precision}
        for job, row in zip(jobs, measure(jobs, options), strict=True):
            if part == "latency":
                row.seconds = [seconds / TIMES for seconds in row.seconds]
            by_precision[job.precision][row.name] = row
        say(part_table(part, texts[part], by_precision, imitated))
        measured[part] = {name: [asdict(row) for row in rows.values()] for name, rows in by_precision.items()}
        for precision, rows in by_precision.items():
            found += [] if precision in imitated else verdicts(part, precision, rows)

    shares = {}
    if "fp32" in options.precision:
        for name in options.precision:
            if name != "fp32":
                shares[name] = equal_predictions(student, texts["mixed"], device, name)
    verdict_lines = [verdict_line(verdict) for verdict in found]
    for name, share in shares.items():
        verdict_lines.append(
            f"- {name}: {share:.2%} of {len(texts['mixed'])} predictions are those of fp32 (at least {EQUAL:.1%}): "
            + ("reached" if share >= EQUAL else "not reached")
        )
    if verdict_lines:
        say("\n".join(verdict_lines))

    out = options.out or f"runs/results/speed-{datetime.now():%Y%m%d-%H%M%S}.json"
    given = (options.teacher, options.student, options.text, options.tokenizer)
    about = provenance(command_line("speed", arguments), options, [p for p in given if p and Path(p).is_file()], [0])
    values = {"difference": difference, "rows": measured, "verdicts": found, "equal predictions": shares, **about}
    write_json(out, values)
    print(f"\nWritten: {out}")
    if options.log:
        append_to(LOG, report)
