"""The demo: its committed files match each other, and the command that makes them works."""

import itertools

from data import Tokenizer, demo
from data.demo import __main__ as command
from model import load_model
from model.config import count_parameters


def test_teacher_tokenizer_and_corpus_match():
    teacher, tokenizer = load_model(demo.TEACHER), Tokenizer(demo.FOLDER)
    assert teacher.config.vocab_size == len(tokenizer)
    assert teacher.config.hidden_size == demo.STUDENT["hidden_size"]
    assert teacher.config.num_layers == 2 * demo.STUDENT["num_layers"]
    assert sum(p.numel() for p in teacher.encoder.parameters()) == count_parameters(teacher.config)
    ids = [i for text in itertools.islice(demo.texts(), 500) for i in tokenizer.encode_plain([text])[0]]
    assert ids.count(tokenizer.unk_id) < 0.002 * len(ids)


def test_corpora_of_student_and_teacher_are_deterministic_and_differ():
    student, teacher = (list(itertools.islice(texts(), 3000)) for texts in (demo.texts, demo.teacher_texts))
    assert list(itertools.islice(demo.texts(), 20)) == student[:20]
    assert list(itertools.islice(demo.teacher_texts(), 20)) == teacher[:20]
    assert len(set(student) & set(teacher)) < 30


def test_the_command_writes_a_corpus_and_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "teacher_texts", lambda: itertools.islice(demo.teacher_texts(), 1500))
    monkeypatch.setattr("sys.argv", ["data.demo", str(tmp_path / "new")])
    command.main()
    lines = (tmp_path / "new" / "corpus.txt").read_text(encoding="utf-8").splitlines()
    assert lines == list(itertools.islice(demo.teacher_texts(), 1500))
    assert len(Tokenizer(tmp_path / "new")) == command.PIECES + 5
