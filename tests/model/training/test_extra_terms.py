"""The terms beyond the paper in a step, against autograd on what hooks record of both models, and in whole runs."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import train
from data.blocks import Batch
from data.cli import OptionError
from losses import LossSettings
from model import Encoder, EncoderConfig, MaskedLM, initialise_student
from model.training.device import Runtime
from model.training.extra_terms import NO_EXTRA_TERMS, choose_extra_terms
from model.training.options import Options
from tests import helpers, train_runs
from tests.helpers import assert_close, relative_norm
from tests.train_runs import metrics, run, uneven_batches

CPU = Runtime(torch.device("cpu"))
BOTH = dict(hidden_weight=0.7, relation_weight=1.5)


@pytest.fixture
def teacher():
    """Four layers of width 32."""
    return train_runs.make_teacher()


def extra_of(of_teacher, of_student, **options):
    return choose_extra_terms(Options(**options), of_teacher, of_student)


def gradients(student, teacher, batches, extra, world=train.SINGLE):
    student.zero_grad()
    distiller = train.Distiller(student, teacher, LossSettings(), CPU, extra)
    sums = train.backward(distiller, teacher, batches, train_runs.DISABLED, world)
    return sums, helpers.gradients(student)


def recorded(model, batch):
    """Each layer's output, and each layer's queries, keys and values, as a forward pass computes them."""
    outputs, projections, handles = [], [], []
    for layer in model.encoder.layers:
        handles.append(layer.register_forward_hook(lambda module, given, output: outputs.append(output)))
        for each in (layer.attention.query, layer.attention.key, layer.attention.value):
            handles.append(each.register_forward_hook(lambda module, given, output: projections.append(output)))
    model.encoder(batch.input_ids, batch.real)
    for handle in handles:
        handle.remove()
    return outputs, [projections[i : i + 3] for i in range(0, len(projections), 3)]


def relation_loss(of_student, of_teacher, real, heads):
    """The sum over the tokens, one sequence and head at a time."""
    total = 0
    for row, mask in enumerate(real):
        for pair in zip(of_student, of_teacher):
            chunks = [x[row, mask].chunk(heads, dim=-1) for x in pair]
            for s, t in zip(*chunks):
                s, t = ((x @ x.T / x.shape[-1] ** 0.5).log_softmax(-1) for x in (s, t))
                total = total + F.kl_div(s, t, log_target=True, reduction="sum") / (3 * heads)
    return total


CASES = [  # --layers, (student layer, teacher layer) to compare, other options, teacher layer of the relations, heads
    (("alternate",), [(0, 1)], {}, 3, 2),
    (("0", "1", "3"), [(0, 0), (1, 2)], dict(relation_heads=4), 3, 4),
    (("2", "3"), [(0, 2)], dict(relation_layer=1), 1, 2),
]


@pytest.mark.parametrize(("layers", "pairs", "options", "relation_layer", "heads"), CASES)
def test_the_gradient_is_that_of_both_terms_beside_equation_13(teacher, layers, pairs, options, relation_layer, heads):
    batch = uneven_batches()[1]
    student = initialise_student(teacher, [0, 2] if layers == ("alternate",) else [*map(int, layers)])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sums, actual = gradients(student, teacher, [batch], extra_of(teacher, student, layers=layers, **BOTH, **options))
    paper, of_paper = gradients(student, teacher, [batch], NO_EXTRA_TERMS)
    student.zero_grad()
    (outputs, projections), (of_teacher, to_relate) = recorded(student, batch), recorded(teacher, batch)
    distances = [1 - F.cosine_similarity(outputs[s], of_teacher[t], dim=-1)[batch.real] for s, t in pairs]
    hidden = sum(distance.sum() for distance in distances) / len(pairs)
    relations = relation_loss(projections[-1], to_relate[relation_layer], batch.real, heads)
    ((0.7 * hidden + 1.5 * relations) / batch.real.sum()).backward()
    assert torch.equal(sums[:5], paper) and sums[5:].tolist() == pytest.approx([hidden.item(), relations.item()], 1e-4)
    parameters = dict(student.named_parameters())
    expected = {name: of_paper[name] + (0 if p.grad is None else p.grad) for name, p in parameters.items()}
    assert_close(actual, expected, 1e-4)
    name = "encoder.layers.0.feed_forward.feed.weight"
    assert relative_norm(actual[name], of_paper[name]) > 0.05


def test_micro_batches_and_ranks_equal_one_batch(teacher):
    parts = uneven_batches()
    whole = Batch(*(torch.cat(tensors) for tensors in zip(*(part[:3] for part in parts))))
    student = initialise_student(teacher, [0, 2])
    extra = extra_of(teacher, student, **BOTH)
    sums, expected = gradients(student, teacher, [whole], extra)
    summed, actual = gradients(student, teacher, parts, extra)
    assert_close(actual, expected)
    assert summed.tolist() == pytest.approx(sums.tolist(), rel=1e-5, abs=1e-4)
    found, counts = [], torch.stack([whole.real.sum(), (whole.labels != -100).sum()])
    for rank, part in enumerate([parts[0], whole._replace(**{n: getattr(whole, n)[2:] for n in Batch._fields[:3]})]):
        world = SimpleNamespace(rank=rank, size=2, sum=lambda values: counts)
        found.append(gradients(student, teacher, [part], extra, world)[1])
    mean = {name: (gradient + found[1][name]) / 2 for name, gradient in found[0].items()}
    assert_close(mean, expected)


@pytest.mark.parametrize("name", ["hidden_state_loss", "attention_relation_loss"])
def test_a_term_without_weight_is_not_computed(teacher, monkeypatch, name):
    def fail(*arguments):
        raise AssertionError("it was computed")

    student, batches = initialise_student(teacher, [0, 2]), uneven_batches()
    monkeypatch.setattr(f"model.training.extra_terms.{name}", fail)
    other = "relation_weight" if name == "hidden_state_loss" else "hidden_weight"
    gradients(student, teacher, batches, extra_of(teacher, student, **{other: 1.0}))
    monkeypatch.setattr(Encoder, "hidden_states", fail)
    sums, _ = gradients(student, teacher, batches, extra_of(teacher, student))
    assert len(sums) == 5


def test_a_student_that_is_given_is_compared_at_equal_distances(teacher):
    student = initialise_student(teacher, [0, 1, 3])
    assert extra_of(teacher, student, student="x", **BOTH).layers == [0, 1, 2]
    assert extra_of(teacher, initialise_student(teacher, [3, 1]), student="x", **BOTH).layers == [0, 2]


WRONG = [  # width and number of layers of the student, options, the message
    (
        16,
        2,
        dict(hidden_weight=1.0),
        "--hidden-weight needs models of one width; the student's is 16, the teacher's 32",
    ),
    (32, 1, dict(hidden_weight=1.0), "--hidden-weight needs a student of at least two layers"),
    (32, 2, dict(relation_heads=5), "--relation-heads must divide .* 32 and 32; 5 does not"),
    (24, 2, dict(relation_heads=16), "--relation-heads must divide .* 24 and 32; 16 does not"),
    (32, 2, dict(relation_layer=4), "--relation-layer must be one of the teacher's layers, 0 to 3, not 4"),
]


@pytest.mark.parametrize(("width", "layers", "options", "message"), WRONG)
def test_models_that_cannot_be_compared_are_refused(teacher, width, layers, options, message):
    student = MaskedLM(EncoderConfig(layers, width, 2, 24, 1005))
    with pytest.raises(OptionError, match=message):
        extra_of(teacher, student, student="x", **dict(relation_weight=1.0) | options)


def test_relations_compare_models_of_different_widths(teacher):
    torch.manual_seed(1)
    student, batch = MaskedLM(EncoderConfig(2, 24, 2, 24, 1005, dropout=0.0)), uneven_batches()[1]
    sums, _ = gradients(student, teacher, [batch], extra_of(teacher, student, student="x", relation_weight=1.0))
    of_student, of_teacher = recorded(student, batch)[1][-1], recorded(teacher, batch)[1][-1]
    assert sums[6].item() == pytest.approx(relation_loss(of_student, of_teacher, batch.real, 2).item(), rel=1e-4)


def test_a_run_lists_them_and_resumes_to_the_same_bits(tmp_path):
    place = train_runs.write_inputs(tmp_path)
    options = dict(steps=5, log_every=3, dropout=0.1, masking_rate=0.3, **BOTH)
    result = run(place, out=place / "whole", **options)
    for words in ("+ 0.7 hidden states + 1.5 attention relations, ", "  hidden 0.", "  relations "):
        assert words in result.stdout
    for line in metrics(place / "whole"):
        paper = 0.5 * line["soft_label_loss"] + 0.3 * line["cosine_loss"] + 0.2 * line["mlm_loss"]
        extra = 0.7 * line["hidden_state_loss"] + 1.5 * line["relation_loss"]
        assert line["loss"] == pytest.approx(paper + extra, rel=1e-6) and line["highest_loss"] >= line["loss"]
    held_out = metrics(place / "whole")[-1]["held_out"]  # comparable with every other run
    terms = [held_out[name] for name in ("soft_label_loss", "cosine_loss", "mlm_loss")]
    assert held_out["loss"] == pytest.approx(sum(w * term for w, term in zip((0.5, 0.3, 0.2), terms)), rel=1e-6)
    run(place, max_hours=train_runs.AT_ONCE, **options)
    run(place, **options)
    train_runs.assert_same_run(place / "out", place / "whole")
    assert "The plan of this run" in run(place, out=place / "plan", plan=True, **options).stdout


def test_without_a_teacher_they_have_no_effect_as_other_weights(tmp_path):
    place = train_runs.write_inputs(tmp_path)
    plain = run(place, out=place / "plain", **train_runs.SIZES)
    result = run(place, **train_runs.SIZES, **BOTH)
    assert "loss      masked LM\n" in plain.stdout and "loss      masked LM\n" in result.stdout
    train_runs.assert_same_run(place / "out", place / "plain")
    assert not {"hidden_state_loss", "relation_loss"} & metrics(place / "out")[0].keys()
