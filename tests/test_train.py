"""The distillation step against autograd, and runs of train.py. Wrong input: test_train_errors.py."""

import math
import os
import re
import shutil
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

import train
from data import Tokenizer
from data.blocks import Batch
from data.cli import parse_options
from data.masking import Masking
from losses import DistillationLoss, LossSettings
from model import EncoderConfig, MaskedLM, initialise_student, load_model, save_model
from model.checkpoints.load import load_teacher
from model.dropout import Dropout
from model.training.device import Runtime, training_flops
from model.training.options import Options
from tests import helpers, train_runs
from tests.helpers import DEVICE, MINI, REAL_TEXT, REAL_TOKENIZER, assert_close, full_blocks, needs, relative_norm
from tests.train_runs import SIZES, batch_of, metrics, provenance, run, state_dict, uneven_batches

CPU = torch.device("cpu")
LOSSES = ("loss", "soft_label_loss", "cosine_loss", "mlm_loss")
EQUATION_13, MLM_ALONE = LossSettings(), LossSettings(weights=(0.0, 0.0, 1.0))


@pytest.fixture
def teacher():
    return train_runs.make_teacher()


@pytest.fixture
def place(tmp_path):
    return train_runs.write_inputs(tmp_path)


@pytest.fixture
def attention_masks(monkeypatch):
    return helpers.record_attention_masks(monkeypatch)


def gradients(student, teacher, batches, settings=EQUATION_13, precision="fp32"):
    student.zero_grad()
    distiller = train.Distiller(student, teacher, settings, Runtime(student.bias.device, precision))
    sums = train.backward(distiller, teacher, batches, train_runs.DISABLED)
    return DistillationLoss(*sums.cpu()), helpers.gradients(student)


@pytest.mark.gpu
@pytest.mark.parametrize("with_teacher", [True, False], ids=["distillation", "masked LM alone"])
def test_accumulation_equals_one_batch(teacher, with_teacher):
    teacher, parts = teacher.to(DEVICE), uneven_batches()
    assert len({int((part.labels != -100).sum()) for part in parts}) > 2
    whole = Batch(*(torch.cat(tensors) for tensors in zip(*(part[:3] for part in parts))))
    student = initialise_student(teacher, [0, 2]).to(DEVICE)
    teacher, settings = (teacher, LossSettings(temperature=2.0)) if with_teacher else (None, MLM_ALONE)
    sums, expected = gradients(student, teacher, [whole], settings)
    summed, actual = gradients(student, teacher, parts, settings)
    assert_close(actual, expected)
    flat = (torch.cat([gradient.flatten() for gradient in found.values()]) for found in (actual, expected))
    assert relative_norm(*flat) < 1e-6
    # a token's divergence is a difference of numbers near T² log |W|, each rounded to float32
    size = 120 * settings.temperature**2 * math.log(student.config.vocab_size)  # of what is summed over the tokens
    rounding = torch.finfo(torch.float32).eps * size  # 4e-4, of a sum of 3
    assert [*map(float, summed)] == pytest.approx([*map(float, sums)], rel=1e-6, abs=rounding)
    assert sums.real_tokens == sum(part.real.sum() for part in parts)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [EQUATION_13, LossSettings("teacher-student", 2.0, (0.1, 0.2, 0.7))])
def test_the_gradient_is_that_of_equation_13(teacher, settings):
    """Against autograd on the mean losses written with PyTorch's own."""
    direction, temperature, loss_weights = settings[:3]
    teacher, batch = teacher.to(DEVICE), uneven_batches()[1]
    student = initialise_student(teacher, [1, 3]).to(DEVICE)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    _, actual = gradients(student, teacher, [batch], settings)
    student.zero_grad()
    batch = batch.to(DEVICE)
    hidden, teacher_hidden = (model.encoder(batch.input_ids, batch.real) for model in (student, teacher))
    log_p = (student.head(hidden)[batch.real] / temperature).log_softmax(-1)
    log_q = (teacher.head(teacher_hidden)[batch.real] / temperature).log_softmax(-1)
    target, given = (log_p, log_q) if direction == "student-teacher" else (log_q, log_p)
    soft_label = temperature**2 * F.kl_div(given, target, log_target=True, reduction="batchmean")
    cosine = F.cosine_embedding_loss(hidden[batch.real], teacher_hidden[batch.real], torch.ones(1, device=DEVICE))
    mlm = F.cross_entropy(student.head(hidden).flatten(0, 1), batch.labels.flatten())
    sum(weight * loss for weight, loss in zip(loss_weights, (soft_label, cosine, mlm))).backward()
    assert_close(actual, helpers.gradients(student))
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_gradient_with_a_projection_is_that_of_equation_11(teacher):
    batch = uneven_batches()[1]
    torch.manual_seed(2)
    student = MaskedLM(EncoderConfig(2, 16, 2, 24, 1005, dropout=0.0))
    distiller = train.Distiller(student, teacher, LossSettings(weights=(0.0, 1.0, 0.0)), Runtime(CPU))
    train.backward(distiller, teacher, [batch], train_runs.DISABLED)
    parameters = distiller.projection.weight, student.encoder.embeddings.word.weight
    actual = [parameter.grad.clone() for parameter in parameters]
    distiller.zero_grad()
    hidden = distiller.projection(student.encoder(batch.input_ids, batch.real))[batch.real]
    teacher_hidden = teacher.encoder(batch.input_ids, batch.real)[batch.real]
    F.cosine_embedding_loss(hidden, teacher_hidden, torch.ones(1)).backward()
    for gradient, parameter in zip(actual, parameters):
        assert relative_norm(gradient, parameter.grad) < 1e-5 and parameter.grad.norm() > 0


@pytest.mark.parametrize("number", range(3))
def test_every_parameter_gets_a_gradient_whatever_the_weights(teacher, number):
    """A zero one if need be: DistributedDataParallel waits for all of them."""
    settings = LossSettings(weights=[float(number == term) for term in range(3)])
    student = initialise_student(teacher, [0, 2])
    _, found = gradients(student, teacher, uneven_batches(), settings)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert (found["dense.weight"].norm() == 0) == (number == 1)  # the cosine loss alone needs no LM head


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03)])
@pytest.mark.parametrize("with_teacher", [True, False], ids=["distillation", "masked LM alone"])
def test_a_step_on_full_blocks_passes_no_attention_mask(teacher, attention_masks, with_teacher, precision, tolerance):
    """In student and teacher; with a mask of true values alone it gives the same gradient to rounding."""
    student, batch = initialise_student(teacher, [0, 2]), uneven_batches()[0]
    teacher, settings, layers = (teacher, EQUATION_13, 4 + 2) if with_teacher else (None, MLM_ALONE, 2)
    _, actual = gradients(student, teacher, [batch], settings, precision)
    assert attention_masks == [None] * layers
    _, expected = gradients(student, teacher, [batch._replace(has_padding=True)], settings, precision)
    assert all(mask.all() for mask in attention_masks[layers:]) and len(attention_masks) == 2 * layers
    assert_close(actual, expected, tolerance)


def test_a_block_with_a_literal_pad_token_gets_a_mask(teacher, attention_masks):
    """Other tokens have the states that they have without it, and it has no part in the losses."""
    blocks = full_blocks(train_runs.TEXTS, train_runs.TOKENIZER, 24)[:2].clone()
    blocks[0, 5] = train_runs.TOKENIZER.pad_id
    batch, student = batch_of(blocks), initialise_student(teacher, [0, 2])
    sums, _ = gradients(student, teacher, [batch])
    assert batch.has_padding and sums.real_tokens == 2 * 24 - 1 and batch.labels[0, 5] == -100
    assert torch.equal(batch.real, blocks != train_runs.TOKENIZER.pad_id)
    assert len(attention_masks) == 6 and all(torch.equal(mask[:, 0, 0], batch.real) for mask in attention_masks)
    rest = torch.arange(24) != 5
    for model in (student, teacher):
        hidden = model.encoder(batch.input_ids, batch.real, has_padding=batch.has_padding)[0, rest]
        assert (hidden - model.encoder(batch.input_ids[:1, rest], has_padding=False)[0]).abs().max() < 1e-5


def test_a_run_leaves_a_student_with_its_tokenizer_and_its_metrics(place, attention_masks):
    result = run(place, steps=5, eval_every=4, checkpoint_every=5)
    for path in ("student.safetensors", "best.safetensors", "checkpoints/step-000000005/student.safetensors", ""):
        assert Tokenizer(place / "out" / path).content == train_runs.TOKENIZER.content
    shutil.rmtree(place / "out" / "checkpoints")
    files = {"best.safetensors", "metrics.jsonl", "run.json", "student.safetensors"}
    assert {*os.listdir(place / "out")} - {"curves.png"} == files
    lines = metrics(place / "out")
    assert [(line["step"], line["tokens"]) for line in lines] == [(2, 128), (4, 128), (5, 64)]
    for line in lines:
        terms = 0.5 * line["soft_label_loss"] + 0.3 * line["cosine_loss"] + 0.2 * line["mlm_loss"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
        assert line["tokens_per_second"] > 0 and line["gradient_norm"] > 0
        assert ("held_out" in line) == (line["step"] in (4, 5))
        assert line["highest_loss"] >= line["loss"] * (1 - 1e-9) and line["skipped"] == []
    student = load_model(place / "out" / "student.safetensors")
    assert student.config == EncoderConfig(2, 32, 2, 64, 1005, dropout=0.0)
    about = provenance(place / "out")
    assert about["options"]["steps"] == 5 and about["versions"]["torch"] == torch.__version__
    assert about["runtime"] == {"device": "cpu", "precision": "fp32", "compiled": False}
    assert set(about["held_out_accuracy"]) == {"teacher", "student before", "student after"}
    for words in ("  teacher ", "student before training", "student after training", "teacher layers 0, 2"):
        assert words in result.stdout
    assert re.search(r"step 2/5  loss \S+  soft \S+  cos \S+  mlm \S+  lr .*  grad norm .* tok/s  ETA ", result.stdout)
    assert attention_masks and not any(mask is not None for mask in attention_masks)  # in the validations neither


def test_the_metrics_begin_with_the_figures_before_the_first_step(place):
    """Those of the student that has the teacher's layers, and so those of a student that does not learn."""
    run(place, lr=1e-12)
    first, *_, last = train_runs.all_metrics(place / "out")
    assert first == {"step": 0, "held_out": pytest.approx(last["held_out"], rel=1e-6)} and len(first["held_out"]) > 6
    assert provenance(place / "out")["held_out_accuracy"]["student before"] == first["held_out"]["accuracy"]


def test_epochs_are_steps(place):
    """The run is the same one, and the same command resumes it."""
    result = run(place, steps=None, epochs=0.5, max_hours=train_runs.AT_ONCE)
    blocks, steps = (int(re.search(pattern, result.stdout)[1]) for pattern in (r"of (\d+) blocks", r"run +(\d+) steps"))
    assert steps == math.ceil(0.5 * blocks / 2) > 2
    run(place, steps=None, epochs=0.5)
    about = provenance(place / "out")["options"]
    assert (about["steps"], about["epochs"]) == (steps, None) and metrics(place / "out")[-1]["step"] == steps
    run(place, steps=steps, out=place / "as steps")
    train_runs.assert_same_run(place / "out", place / "as steps")
    planned = run(place, steps=None, epochs=1e-6, out=place / "one", plan=True)
    assert "run       1 step on" in planned.stdout


def test_what_is_read_before_the_first_step_and_at_the_end(place):
    result = run(place, steps=6, eval_every=3)
    block, end = result.stdout.split("step 0/6")[0], result.stdout.split("step 6/6")[-1]
    for words in (
        f"corpus    {place / 'corpus.txt'}, prepared in {place / 'cache'}",
        "run       6 steps on cpu, fp32, ",
    ):
        assert words in block
    assert re.search(r"tokens    64 a step, 384 in all: [\d.]+ epochs of \d+ blocks of 32\n", block)
    assert re.search(r"time      about \d+ seconds?, until \d\d:\d\d: \S+ s a step, 3 validations\ndisk   ", block)
    best = provenance(place / "out", "best")["step"]
    for words in (
        "6 steps, 384 tokens, in 00:00:0",
        f"the student of step {best}, the lowest",
        "python -m eval table2",
    ):
        assert words in end
    for path in (place / "out").iterdir():
        assert f"  {path.name}{'/' * path.is_dir()} " in end


def test_validations_between_log_lines(place):
    run(place, log_every=3, eval_every=2)
    lines = metrics(place / "out")
    found = [(line["step"], line["tokens"], "held_out" in line) for line in lines]
    assert found == [(2, 128, True), (3, 64, False), (4, 64, True)]


def test_the_best_student_is_the_one_with_the_lowest_validation_loss(place):
    """At a learning rate that makes it worse after a while."""
    run(place, steps=12, eval_every=2, lr=0.05, warmup=0)
    losses = {line["step"]: line["held_out"]["loss"] for line in metrics(place / "out")}
    best = provenance(place / "out", "best")
    assert best["step"] == min(losses, key=losses.get) and best["held_out"]["loss"] == min(losses.values())
    assert best["options"] == provenance(place / "out")["options"] and "student after" in best["held_out_accuracy"]
    assert len(losses) > 2 and best["held_out"]["loss"] < max(losses.values())


def test_a_student_can_be_a_teacher_with_the_tokenizer_inside_it(place):
    run(place)
    result = run(place, teacher=place / "out" / "student.safetensors", tokenizer=None, out=place / "again")
    assert "from teacher layers 0\n" in result.stdout


def test_the_teacher_is_frozen(place):
    teacher = load_teacher(place / "teacher.safetensors", MaskedLM, CPU)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_optimiser_gets_the_learning_rate_of_the_schedule(place, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def spy(self, *arguments, **keywords):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(place, steps=4, warmup=0.5, lr=0.01)
    assert rates == [[rate, rate] for rate in (0.005, 0.01, 0.01, 0.005)]


def test_the_seed_determines_the_initial_values_too(place):
    for seed in (1, 2):
        run(place, out=place / str(seed), seed=seed, lr=1e-12, **SIZES)
    first, second = (state_dict(place / seed)["dense.weight"] for seed in "12")
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_same_seed_gives_the_same_student_to_the_last_bit(place):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(place, out=place / out, seed=seed, dropout=0.1)
    assert train_runs.weights(place / "a") == train_runs.weights(place / "b") != train_runs.weights(place / "c")


def test_the_masking_rate_is_of_training_alone(place, monkeypatch):
    """Two blocks a micro-batch in training; validations have more."""
    rates, corrupt = set(), Masking.__call__

    def spy(self, input_ids, keys):
        rates.add((len(input_ids) == 2, self.strategy, self.rate))
        return corrupt(self, input_ids, keys)

    monkeypatch.setattr(Masking, "__call__", spy)
    run(place, masking_rate=0.4, masking="rare")
    assert rates == {(True, "rare", 0.4), (False, "tokens", 0.15)}


def test_without_a_teacher_it_is_masked_lm_alone(place, monkeypatch):
    peak = Mock(return_value=1e6)
    monkeypatch.setattr("model.training.device.peak_tokens_per_second", peak)
    result = run(place, masking_rate=0.3, **SIZES)
    config = load_model(place / "out" / "student.safetensors").config
    assert config == EncoderConfig(1, 16, 2, 24, 1005)
    for line in metrics(place / "out"):
        assert line["loss"] == pytest.approx(line["mlm_loss"]) and line["soft_label_loss"] is None
        assert line["share_of_peak"] == pytest.approx(line["tokens_per_second"] / 1e6, rel=1e-3)
    peak.assert_called_once_with(Runtime(CPU), 1, training_flops(config, None, 32, 0.3))
    assert "teacher  " not in result.stdout


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_mixed_precision_on_the_cpu_stays_near_fp32(place, precision, accumulate):
    for out, used in (("half", precision), ("full", "fp32")):
        run(place, precision=used, out=place / out, accumulate=accumulate)
    for half, full in zip(metrics(place / "half"), metrics(place / "full")):
        assert half["loss"] != full["loss"] and half["loss"] == pytest.approx(full["loss"], rel=0.02)
        assert half["gradient_norm"] == pytest.approx(full["gradient_norm"], rel=0.1)
    assert {tensor.dtype for tensor in state_dict(place / "half").values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "scale"), [("fp16", 65536), ("bf16", 1), ("fp32", 1)])
def test_only_fp16_scales_the_loss(precision, scale):
    one = torch.ones((), device=DEVICE)
    assert Runtime(DEVICE, precision).grad_scaler().scale(one) == scale


def test_a_compiled_run_gives_the_same_losses(place):
    """With dropout: compiled or not, the same generator draws it."""
    torch._dynamo.reset()
    for compile in ("off", "on"):
        result = run(place, out=place / compile, compile=compile, dropout=0.1, chunk_mb=1, layers="0", steps=2)
        assert ("compiled  the first gradient took" in result.stdout) == (compile == "on")
        assert provenance(place / compile)["runtime"]["compiled"] == (compile == "on")
    for eager, compiled in zip(metrics(place / "off"), metrics(place / "on"), strict=True):
        for name in (*LOSSES, "gradient_norm"):
            assert compiled[name] == pytest.approx(eager[name], rel=1e-4)


def test_a_student_learns(place):
    settings = dict(steps=60, hidden_size=32, intermediate_size=32, lr=0.01, batch_size=8, log_every=20, dropout=0)
    run(place, **SIZES | settings)
    losses = [line["loss"] for line in metrics(place / "out")]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 5.9  # ln 1005 is 6.9


def test_the_default_learning_rate_is_that_of_the_width(place):
    """Less for wide students, and least for wide ones without a teacher."""
    wide = SIZES | dict(hidden_size=512, num_heads=2)
    of_wide = dict(teacher=place / "wide" / "student.safetensors")
    for out, settings, lr in (("given", {}, 1e-3), ("wide", wide, 2.5e-4), ("with a wide teacher", of_wide, 5e-4)):
        result = run(place, out=place / out, steps=1, **settings)
        assert provenance(place / out)["options"]["lr"] == lr and f"lr        {lr:.2g} after" in result.stdout


@pytest.mark.parametrize("layers", ["3,1", ["3", "1"]])
def test_listed_layers_and_the_other_direction(place, layers):
    result = run(place, layers=layers, direction="teacher-student", temperature=2, weights=[1, 0, 1])
    assert "layers 3, 1" in result.stdout and "D_KL(teacher || student)" in result.stdout
    line = metrics(place / "out")[0]
    assert line["loss"] == pytest.approx(line["soft_label_loss"] + line["mlm_loss"], rel=1e-5)


def test_a_given_student_is_the_start(place):
    torch.manual_seed(1)
    save_model(MaskedLM(EncoderConfig(3, 32, 2, 64, 1005)), place / "student.safetensors")
    result = run(place, student=place / "student.safetensors", lr=1e-12, steps=2)
    assert f"from {place / 'student.safetensors'}" in result.stdout
    before, after = state_dict(place), state_dict(place / "out")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-10) for name in before)


def test_a_teacher_of_another_width_needs_a_projection(place):
    """Learned for equation (11), and not part of the student's file."""
    torch.manual_seed(1)
    save_model(MaskedLM(EncoderConfig(2, 16, 2, 24, 1005, dropout=0.0)), place / "student.safetensors")
    run(place, student=place / "student.safetensors", lr=0.01, steps=60, log_every=20, weights=[0, 1, 0.1])
    cosines = [line["cosine_loss"] for line in metrics(place / "out")]
    assert cosines[0] > cosines[1] > cosines[2] and cosines[2] < 0.7 * cosines[0]
    assert load_model(place / "out" / "student.safetensors").config.hidden_size == 16


TRACE = [  # LOSSES of the demo's first steps, in fp32 on the CPU
    [3.051913, 3.576048, 0.537601, 5.513045],
    [2.682593, 2.772205, 0.514150, 5.711228],
    [2.431915, 2.483471, 0.496483, 5.206173],
    [2.372705, 2.396120, 0.477715, 5.156653],
]


def test_the_summary_of_a_real_teacher_on_the_demos_text_says_so_first(place):
    first = "\nTrained on the demo's invented text, not on French: name a corpus with --corpus.\nMasked-token accuracy"
    assert first in run(place, corpus=None).stdout
    assert "invented text" not in run(place, out=place / "other").stdout


def test_the_demo_and_its_loss_trace(tmp_path):
    """`python train.py` with fewer steps. A refactoring keeps these losses, or says why not."""
    words = ("--steps", 4, "--log-every", 1, "--precision", "fp32", "--out", tmp_path, "--cache", tmp_path / "cache")
    result = helpers.run_command("train.py", *words)
    assert result.returncode == 0, result.stderr
    for words in ("the corpus is a demo", "That was the demo. Distil CamemBERT", "--teacher almanach/camembert-base"):
        assert words in result.stdout
    assert "invented text" not in result.stdout
    accuracy = provenance(tmp_path)["held_out_accuracy"]
    assert accuracy["teacher"] > 0.7 > accuracy["student before"]
    trace = [[line[name] for name in LOSSES] for line in metrics(tmp_path)]
    assert [pytest.approx(line, rel=2e-3) for line in TRACE] == trace  # other processors round differently


def test_dropout_is_of_this_run_and_not_stored_with_the_student(place):
    words = train_runs.arguments(place, dropout=0.2)
    *_, student, _ = train.load_models(parse_options(Options, words, "", ""), DEVICE)
    assert {module.p for module in student.modules() if isinstance(module, Dropout)} == {0.2}
    assert student.config.dropout == 0.0  # its teacher's


@needs(MINI, REAL_TOKENIZER, REAL_TEXT)
def test_real_weights_and_real_text(tmp_path):
    lines = (REAL_TEXT / "ud_french_sentences.txt").read_text(encoding="utf-8").split("\n")[:400]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    run(tmp_path, teacher=MINI / "model.safetensors", tokenizer=REAL_TOKENIZER, steps=2, batch_size=1)
    assert load_model(tmp_path / "out" / "student.safetensors").config.num_layers == 3
    accuracy = provenance(tmp_path / "out")["held_out_accuracy"]
    assert accuracy["teacher"] > accuracy["student before"] > 0.05


def test_lines_that_are_not_utf8_are_a_warning(place):
    text = (place / "corpus.txt").read_bytes()
    (place / "corpus.txt").write_bytes("déjà\n".encode("latin-1") + text + b"\n\xff\xfe\n")
    assert "2 lines that are not UTF-8" in run(place).stdout


def test_the_teachers_own_folder_can_be_the_output(place):
    copy, content = place / "sentencepiece.bpe.model", train_runs.TOKENIZER.path.read_bytes()
    copy.write_bytes(content)
    run(place, tokenizer=None, out=place)
    assert (place / "student.safetensors").exists() and copy.read_bytes() == content


def test_help_is_one_page_that_names_every_option():
    result = helpers.run_command("train.py", "--help")
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and len(lines) < 110 and max(map(len, lines)) <= 110
    for name in Options.__dataclass_fields__:
        assert re.search(rf"--{name.replace('_', '-')}[ ,]", result.stdout), name
