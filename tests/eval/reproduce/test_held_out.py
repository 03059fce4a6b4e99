"""Predictions at the masked tokens, against scikit-learn and the validation of a run."""

import numpy
import pytest
import torch
from sklearn.metrics import accuracy_score

from data import demo
from data.blocks import open_blocks, validation_batches
from data.cache import DEMO, prepared_folder
from data.masking import Masking
from data.tokenizer import Tokenizer
from eval.reproduce.held_out import COLUMNS, count_by_block, predict, read_held_out
from eval.validation import validate
from losses import IGNORE_INDEX, LossSettings
from model import MaskedLM, initialise_student
from model.checkpoints.load import load_teacher
from model.training.device import Runtime

RUNTIME, BLOCKS = Runtime(torch.device("cpu")), 40


def test_predictions_and_counts_are_those_of_validation(tmp_path):
    """The figures of `validate`, and per block those of scikit-learn."""
    tokenizer = Tokenizer(demo.FOLDER)
    corpus = prepared_folder(DEMO, tokenizer, str(tmp_path))
    held_out = read_held_out(corpus, tokenizer, 32, BLOCKS)
    teacher = load_teacher(demo.TEACHER, MaskedLM, RUNTIME.device)
    student = initialise_student(teacher, (0, 2, 4))
    of_student, of_teacher = (predict(model, held_out, RUNTIME) for model in (student, teacher))
    counts = count_by_block(held_out, of_student.tokens, of_teacher.tokens)

    batches = validation_batches(open_blocks(corpus, tokenizer, 32)[1], Masking(tokenizer), BLOCKS)
    expected = validate(student, teacher, batches, LossSettings(), RUNTIME)
    masked, right, as_teacher, teacher_right = counts.sum(axis=0)
    assert counts.shape == (BLOCKS, len(COLUMNS)) == (held_out.blocks, 4)
    assert right / masked == expected["accuracy"] and teacher_right / masked == expected["teacher_accuracy"]
    assert as_teacher / masked == expected["agreement"]
    assert of_student.mlm_loss == pytest.approx(expected["mlm_loss"], rel=1e-5)

    labels = torch.cat([batch.labels for batch in batches])
    starts = numpy.cumsum([0, *(labels != IGNORE_INDEX).sum(dim=1).tolist()])
    for block in (0, 7, BLOCKS - 1):
        own = slice(starts[block], starts[block + 1])
        gold = labels[block][labels[block] != IGNORE_INDEX].tolist()
        for column, pair in (
            (1, (gold, of_student.tokens[own])),
            (2, (of_teacher.tokens[own], of_student.tokens[own])),
        ):
            assert counts[block, column] == accuracy_score(*pair, normalize=False)
