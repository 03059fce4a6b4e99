"""Section 3.1: the student is initialised from layers of its teacher."""

import pytest
import torch

from model import EncoderConfig, MaskedLM, ModelError, choose_layers, initialise_student
from tests.helpers import padded_batch


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    model = MaskedLM(EncoderConfig(6, 24, 2, 30, 50)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("layers", [[0, 2, 4], [5], [3, 3, 1], list(range(6))])
def test_each_layer_is_a_copy_of_the_given_teacher_layer(teacher, layers):
    student = initialise_student(teacher, layers)
    assert student.config.num_layers == len(student.encoder.layers) == len(layers)
    for number, source in enumerate(layers):
        one, other = student.encoder.layers[number].state_dict(), teacher.encoder.layers[source].state_dict()
        assert all(torch.equal(one[name], other[name]) for name in other)
    for name, tensor in student.state_dict().items():
        assert name.startswith("encoder.layers.") or torch.equal(tensor, teacher.state_dict()[name]), name


def test_the_precision_is_kept(teacher):
    student = initialise_student(teacher.double(), [1])
    assert torch.equal(student.dense.weight, teacher.dense.weight) and student.dense.weight.dtype == torch.float64


def test_dropout_is_the_teachers(teacher):
    student = initialise_student(teacher, [1])
    assert student.config.dropout == student.encoder.layers[0].dropout.p == teacher.config.dropout == 0.1


def test_no_memory_is_shared(teacher):
    student = initialise_student(teacher, [0, 2])
    theirs = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not any(parameter.data_ptr() in theirs for parameter in student.parameters())


def test_all_layers_give_the_teacher(teacher):
    student = initialise_student(teacher, range(6)).eval()
    input_ids, mask = padded_batch((7, 3), 50)
    assert torch.equal(student(input_ids, mask), teacher(input_ids, mask))


def test_layers_by_name():
    assert choose_layers("alternate", 12) == [0, 2, 4, 6, 8, 10] and choose_layers("alternate", 5) == [0, 2, 4]
    assert choose_layers("distilbert", 12) == [0, 2, 4, 7, 9, 11]
    assert choose_layers("0,5,11", 12) == [0, 5, 11] and choose_layers("3", 6) == [3]


WRONG = {"0,6": "there is no layer 6", "-1": "there is no layer -1", "even": "not 'even'", "": "not ''"}
WRONG |= {"0,,2": "not '0,,2'", "distilbert": "needs a teacher of 12 layers; this one has 6"}


@pytest.mark.parametrize(("choice", "message"), WRONG.items())
def test_a_choice_that_does_not_fit_the_teacher_is_refused(choice, message):
    with pytest.raises(ModelError, match=message):
        choose_layers(choice, 6)


@pytest.mark.parametrize(("layers", "message"), [([0, 6], "0 to 5: there is no layer 6"), ([], "none was given")])
def test_initialise_student_refuses_layers_that_the_teacher_lacks(teacher, layers, message):
    with pytest.raises(ModelError, match=message):
        initialise_student(teacher, layers)
