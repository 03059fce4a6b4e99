"""python -m eval predict: a prediction or a warning for every line, in order, in constant memory."""

import bz2
import gzip
import json
import lzma
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial

import pytest
import torch

import eval.tasks.predict as module
from data import DataError
from data.tasks import PairExample, QuestionExample, TextExample, WordsExample
from eval.tasks.batching import TaskSettings
from eval.tasks.evaluate import TASK_CLASSES, predict
from eval.tasks.predict import Lines, Options, parse_line, read_chunks, run
from model import EncoderConfig, QuestionAnswerer, SequenceClassifier, TokenClassifier
from model.checkpoints.load import load_checkpoint
from tests.eval.tasks.shared import ON_CPU, RUNTIME, TOKENIZER, check_error, ignore, pipe, save, write
from tests.helpers import REPOSITORY, run_command

pytestmark = pytest.mark.filterwarnings("ignore:'eval")
CONFIG = EncoderConfig(1, 16, 2, 16, 1005, max_positions=66)
STARS, RELATIONS = ("1 star", "2 stars", "3 stars"), ("contradiction", "entailment", "neutral")
TAGS = ("O", "B-PER", "I-PER", "I-LOC")
TEXTS = ["Le film se passe à Brest, et il est bien long.", "", "🎬🍿 un film 👍🏽", "Фильм 很好 ואו ﷽"]
TEXTS += ["Oui\u2028non\u00a0!\u0085Fin", "   ", "<mask> </s> <unk>"]
PAIRS = list(zip(TEXTS, reversed(TEXTS)))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random model for each task."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    made = {
        "sentiment": SequenceClassifier(CONFIG, 3, STARS),
        "nli": SequenceClassifier(CONFIG, 3, RELATIONS),
        "ner": TokenClassifier(CONFIG, 4, TAGS),
        "qa": QuestionAnswerer(CONFIG),
    }
    return {task: save(model, folder / f"{task}.safetensors", noise=0.5) for task, model in made.items()}


def command(models, task, *arguments):
    return run_command("-m eval", "predict", task, "--model", models[task], *ON_CPU, *arguments)


def answers(result, status: int = 0):
    assert result.returncode == status, result.stderr
    return [json.loads(line) for line in result.stdout.split("\n")[:-1]]  # splitlines would split at U+2028


def input_line(form, **values):
    return "\t".join(values.values()).encode() if form == "plain" else {**values, "more": 1}


def expected(models, task, examples, **settings):
    """-> the task, and the predictions of eval.tasks.evaluate.predict, one example at a time"""
    model = load_checkpoint(models[task])
    kind = TASK_CLASSES[task](TaskSettings(TOKENIZER, 64, **settings), getattr(model, "labels", ()))
    return kind, [predict(model, kind, [example], RUNTIME, 4096, ignore)[0] for example in examples]


@pytest.mark.parametrize("chunk_lines", [2048, 3])
@pytest.mark.parametrize("form", ["plain", "json"])
@pytest.mark.parametrize("task", ["sentiment", "nli"])
def test_labels(models, tmp_path, monkeypatch, task, form, chunk_lines):
    monkeypatch.setattr(module, "CHUNK_LINES", chunk_lines)
    if task == "sentiment":
        examples = [TextExample(text, "") for text in TEXTS]
        lines = [input_line(form, text=text) for text in TEXTS]
    else:
        examples = [PairExample(*pair, "") for pair in PAIRS]
        lines = [input_line(form, premise=premise, hypothesis=hypothesis) for premise, hypothesis in PAIRS]
    task_object, predictions = expected(models, task, examples)
    found = answers(command(models, task, write(tmp_path / "lines", *lines)))
    assert [values["line"] for values in found] == list(range(1, len(lines) + 1))
    assert len({values["label"] for values in found}) > 1
    for values, prediction in zip(found, predictions):
        assert values["label"] == prediction.label
        assert list(values["scores"]) == list(task_object.labels)
        assert list(values["scores"].values()) == pytest.approx(prediction.scores.tolist(), abs=2e-6)
        assert values["score"] == max(values["scores"].values())


@pytest.mark.parametrize("form", ["plain", "json"])
def test_entities_of_running_text(models, tmp_path, form):
    long = " ".join(TEXTS * 30)
    texts = [*TEXTS, long]
    _, predictions = expected(models, "ner", [TextExample(text, "") for text in texts])
    lines = write(tmp_path / "lines", *(input_line(form, text=text) for text in texts))
    found = answers(command(models, "ner", lines))
    assert sum(len(values["entities"]) for values in found) > len(texts)
    for text, values, (entities, _, _) in zip(texts, found, predictions, strict=True):
        places = [(e["type"], e["start"], e["end"]) for e in values["entities"]]
        assert places == [(e.type, e.start, e.end) for e in entities]
        assert all(text[e["start"] : e["end"]] == e["text"] for e in values["entities"])
        assert [e["score"] for e in values["entities"]] == pytest.approx([e.score for e in entities], abs=2e-6)
    assert len(predictions[-1].scores) == len(TOKENIZER.encode(long)) - 2 > 64  # no piece is missing between windows


def test_tags_of_words(models, tmp_path):
    sentences = [["Anne", "habite", "à", "Brest"], [], ["\u200b"], ["🎬"], ["Brest"] * 200]
    found = answers(command(models, "ner", write(tmp_path / "lines", *({"words": words} for words in sentences))))
    _, predictions = expected(models, "ner", [WordsExample(tuple(words), ()) for words in sentences])
    for values, words, prediction in zip(found, sentences, predictions, strict=True):
        assert values["words"] == words and values["tags"] == list(prediction.tags)
        assert len(values["tags"]) == len(words)


@pytest.mark.parametrize("labels", [("O", "B_PER"), ("NOUN", "DET"), ("O", "PER", "B-LOC")])
def test_a_model_with_unclear_labels_is_refused_before_anything_is_read(tmp_path, labels):
    path = save(TokenClassifier(CONFIG, len(labels), labels), tmp_path / "model.safetensors")
    for lines in (write(tmp_path / "lines", *TEXTS), write(tmp_path / "none")):
        check_error(command({"ner": path}, "ner", lines), "The model has the tag", ", ".join(labels))


@pytest.mark.parametrize("form", ["plain", "json"])
def test_answers_to_questions(models, tmp_path, form):
    pairs = [*PAIRS, ("Quel film ?", "Le film est long. " * 50), ("Quel film ? " * 5000, TEXTS[0])]
    lines = write(tmp_path / "lines", *(input_line(form, question=q, context=c) for q, c in pairs))
    found = answers(command(models, "qa", lines))
    _, predictions = expected(models, "qa", [QuestionExample("", c, q, ()) for q, c in pairs])
    for (_, context), values, prediction in zip(pairs, found, predictions, strict=True):
        assert (values["answer"], values["start"], values["end"]) == prediction[:3]
        assert context[values["start"] : values["end"]] == values["answer"]
        assert values["score"] == pytest.approx(prediction.score, abs=2e-6)


def test_options_at_their_bounds(models, tmp_path):
    path = write(tmp_path / "lines", {"question": "Quel film ? " * 100, "context": "Le film est long. " * 50})
    settings = ("--max-length", 16, "--doc-stride", 9999, "--max-answer", 1, "--batch-tokens", 1)
    (found,) = answers(command(models, "qa", path, *settings))
    assert len(found["answer"].split()) <= 1


def test_a_long_text_is_truncated_or_averaged_over_windows(models, tmp_path):
    sentence = "Le film est long, et il se passe à Brest. "
    text = (sentence * (100_000 // len(sentence) + 1))[:100_000]
    path = write(tmp_path / "lines", {"text": text})
    truncated = command(models, "sentiment", path)
    assert "1 of 1 texts are longer than 64 tokens: truncated" in truncated.stderr
    ids = TOKENIZER.encode(text)[1:-1]
    parts = [[TOKENIZER.bos_id, *ids[i : i + 62], TOKENIZER.eos_id] for i in range(0, len(ids), 62)]
    model = load_checkpoint(models["sentiment"]).eval()
    with torch.no_grad():
        probabilities = torch.cat([model(torch.tensor([part])).softmax(dim=-1) for part in parts])
    (first,) = answers(truncated)
    assert list(first["scores"].values()) == pytest.approx(probabilities[0].tolist(), abs=1e-5)
    whole = command(models, "sentiment", path, "--windows")
    assert "truncated" not in whole.stderr
    (values,) = answers(whole)
    assert list(values["scores"].values()) == pytest.approx(probabilities.mean(dim=0).tolist(), abs=1e-5)
    assert values["scores"] != first["scores"]


def test_memory_does_not_grow_with_the_lines(models, monkeypatch, tmp_path):
    """The memory that Python allocates; the output goes to a file."""
    monkeypatch.setattr(module, "CHUNK_LINES", 200)
    options = Options(model=str(models["sentiment"]), device="cpu", precision="fp32")
    peaks = {}
    for count in (600, 6000):
        lines = (f"{TEXTS[i % len(TEXTS)]} {i % 100}\n".encode() for i in range(count))
        with open(tmp_path / "answers", "w") as out:
            monkeypatch.setattr(sys, "stdout", out)
            tracemalloc.start()
            run("sentiment", options, lines)
            peaks[count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            monkeypatch.undo()
            monkeypatch.setattr(module, "CHUNK_LINES", 200)
        assert len((tmp_path / "answers").read_text().splitlines()) == count
    assert peaks[6000] < peaks[600] + 2**20


INVALID = {  # task -> lines and their warnings
    "sentiment": [
        (b'{"text": "a"', "invalid JSON at character 13"),
        (b'{"text": 1}', 'a string under the key "text"'),
        (b'{"review": "a"}', "the keys are: review"),
        (b"{}", "the keys are: none"),
        (b"abc \xff", "byte 5 is not UTF-8"),
        (b'{"text": "\\ud800"}', "unpaired surrogate"),
        (b'{"text": ' + b"[" * 10**5, "nested too deeply"),
        (b'{"text": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"\\ud800": 1}', "expected a string"),
    ],
    "nli": [
        (b"no tab", "found 0 tabs"),
        (b"a\tb\tc", "found 2 tabs"),
        (b"", "0 tabs"),
        (b'{"premise": "a", "hypothesis": null}', 'a string under the key "hypothesis"'),
    ],
    "ner": [
        (b'{"words": "Brest"}', '"words" must be a list'),
        (b'{"words": ["a", 1]}', '"words" must be a list'),
        (b'{"words": ["a", " "]}', '"words" must be a list'),
        (b'{"words": ["\\udfff"]}', "unpaired surrogate"),
    ],
    "qa": [
        (b"no tab", "expected question and context separated by one tab"),
        (b'{"question": "a"}', 'a string under the key "context"'),
    ],
}
VALID = {"sentiment": b"Oui.", "nli": b"Oui.\tNon.", "ner": b"Brest", "qa": b"Quoi ?\tLe film."}


@pytest.mark.parametrize("task", INVALID)
def test_invalid_lines_are_skipped(models, tmp_path, task):
    lines = [line for invalid, _ in INVALID[task] for line in (VALID[task], invalid)]
    result = command(models, task, write(tmp_path / "lines", *lines))
    assert [values["line"] for values in answers(result, status=1)] == list(range(1, len(lines), 2))
    warnings = result.stderr.splitlines()
    assert len(warnings) == len(INVALID[task]) + 1
    for number, (warning, (_, sentence)) in enumerate(zip(warnings, INVALID[task])):
        assert warning.startswith(f"warning: line {2 * number + 2} skipped: ")
        assert sentence in warning and len(warning) < 300
    assert warnings[-1] == f"warning: {len(INVALID[task])} of {len(lines)} lines skipped."


def test_only_invalid_lines(models, tmp_path):
    result = command(models, "nli", write(tmp_path / "lines", b"a", b"b"))
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.endswith("python -m eval: No line is valid. See --help for the format of a line.\n")


def test_empty_input(models, tmp_path):
    result = command(models, "nli", write(tmp_path / "lines"))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_line_endings_and_the_byte_order_mark():
    lines = [b'\xef\xbb\xbf{"text": "a"}\r\n', b"\xef\xbb\xbfb\r\n", b" c\n", b"d\r"]
    (chunk,) = read_chunks(lines, "sentiment", Lines())
    assert [example.text for _, example in chunk] == ["a", "\ufeffb", " c", "d"]
    assert parse_line("sentiment", b'\t{"text": "e"}').text == "e"
    assert parse_line("ner", b'{"text": "f", "words": ["g"]}') == WordsExample(("g",), ())


def test_the_size_of_chunks(monkeypatch, capsys):
    monkeypatch.setattr(module, "CHUNK_BYTES", 10)
    lines = [b"0123456789\n", b"a\n", b"b\n", b"\xff" * 20, b"c\n"]
    found = [[number for number, _ in chunk] for chunk in read_chunks(lines, "sentiment", Lines())]
    assert found == [[1], [2, 3], [5]]
    assert "1 of 5 lines skipped" in capsys.readouterr().err
    with pytest.raises(DataError, match="No line is valid"):
        list(read_chunks([b"\xff"], "sentiment", Lines()))


@pytest.mark.parametrize("name", [(), ("-",)])
def test_standard_input(models, tmp_path, monkeypatch, name):
    path = write(tmp_path / "lines", *(text.encode() for text in TEXTS))
    pipe(monkeypatch, path.read_bytes())
    piped = command(models, "sentiment", *name)
    assert answers(piped) == answers(command(models, "sentiment", path))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_lines(models, tmp_path, monkeypatch, compress):
    path = write(tmp_path / "lines", *(text.encode() for text in TEXTS))
    expected = answers(command(models, "sentiment", path))
    packed = tmp_path / "packed"
    packed.write_bytes(compress(path.read_bytes()))
    assert answers(command(models, "sentiment", packed)) == expected
    pipe(monkeypatch, packed.read_bytes())
    assert answers(command(models, "sentiment")) == expected
    renamed = command(models, "sentiment", packed.rename(tmp_path / "lines.tsv"))
    assert answers(renamed) == expected and "lines.tsv is plain text in " in renamed.stderr
    packed.write_bytes((tmp_path / "lines.tsv").read_bytes()[:-6])
    result = command(models, "sentiment", packed)
    assert result.returncode == 2 and f"{packed} cannot be read" in result.stderr and "Traceback" not in result.stderr


NO_LINES = {
    "is UTF-16-LE. Convert it to UTF-8: iconv -f UTF-16 -t UTF-8.": ("\ufeff" + TEXTS[0]).encode("utf-16-le"),
    "is UTF-16-BE. Convert it to UTF-8: iconv -f UTF-16 -t UTF-8.": ("\ufeff" + TEXTS[0]).encode("utf-16-be"),
    "is not UTF-8. Convert it, for example with iconv -f WINDOWS-1252": "Déjà vu\n".encode("cp1252") * 9 + b"Bon.\n",
    "is UTF-32-LE. Convert it to UTF-8: iconv -f UTF-32 -t UTF-8.": ("\ufeff" + TEXTS[0]).encode("utf-32-le"),
    "is UTF-32-BE. Convert it to UTF-8: iconv -f UTF-32 -t UTF-8.": ("\ufeff" + TEXTS[0]).encode("utf-32-be"),
    "is Parquet. Write it as JSON lines": b"PAR1\x15\x04PAR1",
    "is an Arrow file. Write it as JSON lines": b"ARROW1\0\0" + bytes(9),
    "is JSON over several lines. Write it as JSON lines": b'[\n {"text": "a"},\n {"text": "b"}\n]\n',
    "is a PDF document. Extract its text first": b"%PDF-1.7\n",
    "is a Git LFS pointer, not the file itself": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "is an archive. Unpack it first.": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("sentence", NO_LINES)
def test_what_has_no_lines_is_refused(models, tmp_path, monkeypatch, sentence):
    path = tmp_path / "lines.txt"
    path.write_bytes(content := NO_LINES[sentence])
    check_error(command(models, "sentiment", path), f"{path} {sentence}")
    pipe(monkeypatch, content)
    check_error(command(models, "sentiment"), f"standard input {sentence}")


def test_no_standard_input(models, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    check_error(command(models, "sentiment"), "There is no standard input. Name a file.")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "The task is missing. The tasks are sentiment, ner, nli, qa"),
        (["spelling"], "There is no task spelling. The tasks are"),
        (["sentimant", "x"], "Did you mean sentiment?"),
        (["qa"], "--model is missing"),
        (["qa", "--model", "MODEL", "/none"], "There is no file /none"),
        (["qa", "--model", "MODEL", "."], ". cannot be read"),
        (["qa", "--model", "/none"], "There is no file /none"),
        (["ner", "--model", "MODEL"], "is a QuestionAnswerer, not a TokenClassifier"),
        (["qa", "--model", "MODEL", "--max-length", 65], "at most 64 tokens"),
        (["qa", "--model", "MODEL", "--max-length", 15], "--max-length must be at least 16"),
        (["qa", "--model", "MODEL", "--tokenizer", "README.md"], "is not a SentencePiece model"),
    ],
)
def test_error_messages(models, monkeypatch, arguments, sentence):
    pipe(monkeypatch, b"Quoi ?\tLe film.\n")
    arguments = [models["qa"] if argument == "MODEL" else argument for argument in arguments]
    check_error(run_command("-m eval", "predict", *arguments), sentence)


def test_help():
    result = run_command("-m eval", "predict", "--help")
    assert result.returncode == 0 and "premise TAB hypothesis" in result.stdout


def test_a_reader_that_closes_the_pipe(models, tmp_path):
    path = write(tmp_path / "lines", *[b"Le film est long."] * 20_000)
    line = f"{sys.executable} -m eval predict sentiment --model {models['sentiment']} --precision fp32 {path}"
    shell = ["bash", "-c", f"set -o pipefail; {line} | head -1"]
    result = subprocess.run(shell, capture_output=True, cwd=REPOSITORY, text=True)
    assert result.returncode == 0 and result.stderr == ""
    assert json.loads(result.stdout)["line"] == 1


def test_ctrl_c_while_the_input_is_silent(models, tmp_path):
    """Chunks are answered while the thread that reads waits for the next; that thread delays no exit."""
    words = [sys.executable, "-m", "eval", "predict", "sentiment", "--model", models["sentiment"], *ON_CPU]
    default = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
    found = tmp_path / "found"
    pipes = dict(stdin=subprocess.PIPE, stdout=found.open("wb"), stderr=subprocess.PIPE)
    with subprocess.Popen([*map(str, words)], cwd=REPOSITORY, preexec_fn=default, **pipes) as process:
        process.stdin.write(b"Le film est long.\n" * 16_000)  # more than what tells the form of the input
        process.stdin.flush()
        try:
            for _ in range(300):
                time.sleep(0.1)
                if found.stat().st_size:
                    break
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()
        assert process.stderr.read() == b"\npython -m eval: interrupted.\n"
    assert json.loads(found.read_text().split("\n")[0])["line"] == 1
