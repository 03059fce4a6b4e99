"""Warnings of shared examples and of models that always give one answer."""

import pytest
import torch

from data.tasks import PairExample, QuestionExample, TextExample, WordsExample
from eval.tasks.batching import TaskSettings
from eval.tasks.checks import warn_of_one_answer, warn_of_shared_examples
from eval.tasks.multi_label import LabelsPrediction
from eval.tasks.ner import Entity, EntityPrediction, TagPrediction
from eval.tasks.qa import AnswerSpan, QaTask
from eval.tasks.regression import ValuePrediction
from eval.tasks.sequences import LabelPrediction
from tests.eval.tasks.shared import TOKENIZER

MAKE = {
    "sentiment": lambda n, label: TextExample(f"{n}", label),
    "nli": lambda n, label: PairExample("premise", f"{n}", label),
    "ner": lambda n, label: WordsExample((f"{n}",), (label,)),
    "qa": lambda n, label: QuestionExample(label, "context", f"{n} ?", ()),
}


@pytest.mark.parametrize("task", MAKE)
def test_examples_that_are_in_two_parts_are_said(task, capsys):
    """Whatever their labels and ids, and whatever files they come from."""
    make = MAKE[task]
    train = [make(n, "a") for n in range(200)]
    cases = {
        (0, 200): "all examples of --dev are also in --train. Is it one file? The figures on --dev are too good",
        (150, 250): "50 of 100 examples of --dev are also in --train. The figures on --dev are too good",
        (100, 150): "all examples of --dev are also in --train. The figures",
        (189, 289): "11 of 100 examples",
        (190, 290): "",
        (200, 300): "",
    }
    for (begin, end), sentence in cases.items():
        warn_of_shared_examples({"train": train, "dev": [make(n, "b") for n in range(begin, end)]})
        said = capsys.readouterr().err
        assert sentence in said and bool(said) == bool(sentence)
    warn_of_shared_examples({"train": train[:50], "dev": train[50:90], "test": train[40:90]})
    assert [line.split(" also")[0] for line in capsys.readouterr().err.splitlines()] == [
        "warning: 10 of 50 examples of --test are",
        "warning: 40 of 50 examples of --test are",
    ]


SCORES = torch.tensor([0.5, 0.5])
ENTITY = EntityPrediction([Entity("PER", 0, 1, 0.9)], None, SCORES)
CASES = {
    "label": (LabelPrediction("neg", SCORES), LabelPrediction("pos", SCORES), "neg"),
    "labels": (LabelsPrediction(("a", "b"), SCORES), LabelsPrediction(("a",), SCORES), "a, b"),
    "no label": (LabelsPrediction((), SCORES), LabelsPrediction(("a",), SCORES), "no label"),
    "value": (ValuePrediction(torch.tensor([0.25])), ValuePrediction(torch.tensor([0.5])), "0.2500"),
    "tags": (TagPrediction(("O", "O"), None, SCORES), TagPrediction(("B-PER",), None, SCORES), "no entity"),
    "entities": (EntityPrediction([], None, SCORES), ENTITY, "no entity"),
    "answer": (AnswerSpan("Brest", 0, 5, 0.9, -1.0), AnswerSpan("Lille", 0, 5, 0.9, -1.0), "'Brest'"),
    "no answer": (AnswerSpan("Brest", 0, 5, 0.9, 2.0), AnswerSpan("Brest", 0, 5, 0.9, 0.0), "no answer"),
}


@pytest.mark.parametrize(("same", "other", "words"), CASES.values(), ids=CASES)
def test_predictions_that_are_all_the_same_are_said(same, other, words, capsys):
    task = QaTask(TaskSettings(TOKENIZER, 32, False, no_answer_threshold=1.0), ())
    warn_of_one_answer(task, [same] * 12, "--dev")
    assert (
        f"all 12 predictions on --dev are the same: {words}. The model may have learnt nothing"
        in capsys.readouterr().err
    )
    for predictions in ([same] * 9, [same] * 11 + [other], []):
        warn_of_one_answer(task, predictions, "--dev")
        assert capsys.readouterr().err == ""


def test_entities_in_all_texts_are_not_one_answer(capsys):
    for each in (ENTITY, TagPrediction(("B-PER",), None, SCORES)):
        warn_of_one_answer(None, [each] * 20, "--test")
    assert capsys.readouterr().err == ""
