"""The distillation run: the step's arithmetic, the command, and every wrong option."""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy
import pytest
import torch
from safetensors import safe_open

import train
from data import Tokenizer, demo
from data.blocks import Batch, make_batch
from data.corpus.shuffle import key_of
from data.masking import Masking
from losses import DistillationLoss
from model import EncoderConfig, MaskedLM, initialise_student, load_model, save_model
from model.training.device import Runtime
from tests.helpers import MINI, REAL_TEXT, REAL_TOKENIZER, needs, packed, relative_norm, run_command

TOKENIZER = Tokenizer(demo.FOLDER)
TEXTS = list(itertools.islice(demo.texts(), 300))
MACHINE = Runtime(torch.device("cpu"))
DISABLED = torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return MaskedLM(EncoderConfig(4, 32, 2, 64, 1005, dropout=0.0)).eval().requires_grad_(False)


@pytest.fixture
def place(tmp_path, teacher):
    """A folder with a small teacher, a corpus and the demo's tokenizer."""
    save_model(teacher, tmp_path / "teacher.safetensors")
    (tmp_path / "corpus.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return tmp_path


def run(place, *arguments, **changed):
    """train.py on that folder, small; changed=None leaves an option out."""
    options = dict(
        teacher=place / "teacher.safetensors", tokenizer=demo.FOLDER, corpus=place / "corpus.txt", out=place / "out",
        cache=place / "cache", steps=4, batch_size=2, block_size=32, log_every=2, precision="fp32",
    ) | changed  # fmt: skip
    given = []
    for name, value in options.items():
        if value is not None:
            given += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    return run_command("train.py", *given, *arguments)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# ---- the step --------------------------------------------------------------------------------------------------


def uneven_batches():
    """Four micro-batches with very different numbers of real and of masked tokens."""
    blocks = packed(TEXTS, TOKENIZER, 24)[:8]
    parts = []
    for number, part in enumerate(blocks.split(2)):
        part = part.clone()
        part[:, 24 - 6 * number :] = TOKENIZER.pad_id
        parts.append(make_batch(part, Masking(TOKENIZER), key_of(number, numpy.arange(2))))
    return parts


def gradients(student, teacher, batches, options):
    student.zero_grad()
    distiller = train.Distiller(student, teacher, options)
    sums = train.accumulate_gradients(distiller, teacher, batches, options, MACHINE, DISABLED)
    return DistillationLoss(*sums), {name: parameter.grad.clone() for name, parameter in student.named_parameters()}


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


@pytest.mark.parametrize("with_teacher", [True, False], ids=["distillation", "masked LM alone"])
def test_accumulation_equals_one_batch(teacher, with_teacher):
    parts = uneven_batches()
    assert len({int((part.labels != -100).sum()) for part in parts}) > 2
    whole = Batch(*(torch.cat(tensors) for tensors in zip(*parts)))
    student = initialise_student(teacher, [0, 2])
    options = train.Options(temperature=2.0)
    if not with_teacher:
        teacher = None
    sums, expected = gradients(student, teacher, [whole], options)
    summed, actual = gradients(student, teacher, parts, options)
    assert relative_norm(flat(actual), flat(expected)) < 1e-6
    for name in expected:
        if not name.endswith("attention.key.bias"):  # zero but for rounding: softmax does not see it
            assert relative_norm(actual[name], expected[name]) < 1e-5, name
    for one, other in zip(sums, summed):
        assert one.item() == pytest.approx(other.item(), rel=1e-6)
    assert sums.real_tokens == sum(part.real.sum() for part in parts)


class Shared(torch.nn.Module):
    """As DistributedDataParallel: says which of the micro-steps it would not have reduced."""

    def __init__(self, distiller):
        super().__init__()
        self.distiller, self.local, self.calls = distiller, False, []

    def forward(self, *arguments):
        self.calls.append("local" if self.local else "all")
        return self.distiller(*arguments)

    @contextlib.contextmanager
    def no_sync(self):
        self.local = True
        yield
        self.local = False


def test_only_the_last_micro_step_is_reduced_over_processes(teacher):
    """And each process's gradient is twice as large, since the mean over both is taken: here, of two that are equal."""
    parts, options = uneven_batches()[:3], train.Options()
    two = SimpleNamespace(rank=0, count=2, sum=lambda values: 2 * values)
    student = initialise_student(teacher, [0, 2])
    _, alone = gradients(student, teacher, parts, options)
    student.zero_grad()
    shared = Shared(train.Distiller(student, teacher, options))
    train.accumulate_gradients(shared, teacher, parts, options, MACHINE, DISABLED, two)
    assert shared.calls == ["local", "local", "all"]
    assert relative_norm(flat({name: p.grad for name, p in student.named_parameters()}), flat(alone)) < 1e-6


@pytest.mark.parametrize(
    ("direction", "temperature", "weights"),
    [("student-teacher", 1.0, (0.5, 0.3, 0.2)), ("teacher-student", 2.0, (0.1, 0.2, 0.7))],
)
def test_the_gradient_is_that_of_equation_13(teacher, direction, temperature, weights):
    """Against autograd on the mean losses as PyTorch has them, written once more from the page."""
    import torch.nn.functional as F

    (batch, *_) = uneven_batches()
    student = initialise_student(teacher, [1, 3])
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    options = train.Options(direction=direction, temperature=temperature, weights=weights)
    _, actual = gradients(student, teacher, [batch], options)
    student.zero_grad()
    hidden, their_hidden = student.encoder(*batch[::2]), teacher.encoder(*batch[::2])
    log_p = (student.head(hidden)[batch.real] / temperature).log_softmax(-1)
    log_q = (teacher.head(their_hidden)[batch.real] / temperature).log_softmax(-1)
    target, given = (log_p, log_q) if direction == "student-teacher" else (log_q, log_p)
    soft = temperature**2 * F.kl_div(given, target, log_target=True, reduction="batchmean")
    cosine = F.cosine_embedding_loss(hidden[batch.real], their_hidden[batch.real], torch.ones(1))
    mlm = F.cross_entropy(student.head(hidden).flatten(0, 1), batch.labels.flatten())
    (weights[0] * soft + weights[1] * cosine + weights[2] * mlm).backward()
    for name, parameter in student.named_parameters():
        if not name.endswith("attention.key.bias"):
            assert relative_norm(actual[name], parameter.grad) < 1e-5, name
    assert not teacher.training and all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_teacher_is_frozen(place):
    options = train.Options(teacher=str(place / "teacher.safetensors"))
    loaded = train.read_teacher(options, TOKENIZER, torch.device("cpu"))
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_learning_rate_rises_and_falls():
    options = train.Options(steps=100, warmup=0.1, lr=1.0)
    rates = [train.learning_rate(step, options) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10:] == pytest.approx([(90 - step) / 90 for step in range(90)])
    assert max(rates) == 1.0 and min(rates) > 0
    assert train.learning_rate(1, replace(options, warmup=0.0)) == 1.0
    assert train.learning_rate(100, replace(options, warmup=1.0)) == 1.0
    assert train.learning_rate(1, replace(options, steps=1)) == 1.0


def test_biases_and_norms_do_not_decay(teacher):
    optimiser = train.make_optimiser(teacher, train.Options(weight_decay=0.1))
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in teacher.named_parameters():
        assert decay[id(parameter)] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name


def test_a_long_gradient_is_shortened(teacher):
    student = initialise_student(teacher, [0]).requires_grad_(True)
    optimiser = torch.optim.SGD(student.parameters(), lr=123.0, fused=True)  # the rate of the step counts
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    count = sum(parameter.numel() for parameter in student.parameters())
    length, skipped = train.optimiser_step(student, optimiser, DISABLED, 1.0, train.Options(clip=0.5))
    assert not skipped
    moved = math.sqrt(sum((p - b).square().sum().item() for p, b in zip(student.parameters(), before)))
    assert length.item() == pytest.approx(3 * count**0.5, rel=1e-5) and moved == pytest.approx(0.5, rel=1e-4)
    assert all(parameter.grad is None for parameter in student.parameters())


# ---- the command -----------------------------------------------------------------------------------------------


def test_a_run_leaves_a_student_its_tokenizer_and_its_metrics(place):
    result = run(place, steps=5, log_every=2, eval_every=4)
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(place / "out")) == [
        "best.safetensors", "metrics.jsonl", "run.json", "sentencepiece.bpe.model", "student.safetensors"
    ]  # fmt: skip
    lines = metrics(place / "out")
    assert [line["step"] for line in lines] == [2, 4, 5]
    for line in lines:
        terms = 0.5 * line["soft_label_loss"] + 0.3 * line["cosine_loss"] + 0.2 * line["mlm_loss"]
        assert line["loss"] == pytest.approx(terms, rel=1e-5)
        assert line["tokens_per_second"] > 0 and line["gradient_norm"] > 0
        assert ("held_out" in line) == (line["step"] in (4, 5))
        assert line["highest_loss"] >= line["loss"] * (1 - 1e-9) and line["skipped"] == []
    assert [line["tokens"] for line in lines] == [128, 128, 64]
    student = load_model(place / "out" / "student.safetensors")
    assert student.config == EncoderConfig(2, 32, 2, 64, 1005, dropout=0.0)
    with safe_open(place / "out" / "student.safetensors", "pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    assert provenance["options"]["steps"] == 5 and provenance["versions"]["torch"] == torch.__version__
    assert set(provenance["held_out_accuracy"]) == {"teacher", "student before", "student after"}
    for word in ("teacher", "student before", "student after", "soft", "cos", "mlm", "tokens/s", "left", "layers 0, 2"):
        assert word in result.stdout


def test_measuring_between_log_lines(place):
    assert run(place, steps=4, log_every=3, eval_every=2).returncode == 0
    lines = metrics(place / "out")
    assert [(line["step"], "held_out" in line) for line in lines] == [(2, True), (3, False), (4, True)]
    assert [line["tokens"] for line in lines] == [128, 64, 64]


def test_the_best_student_is_the_one_with_the_lowest_held_out_loss(place):
    """With a rate that makes it worse after a while."""
    assert run(place, steps=12, eval_every=2, lr=0.05, warmup=0).returncode == 0
    losses = {line["step"]: line["held_out"]["loss"] for line in metrics(place / "out")}
    with safe_open(place / "out" / "best.safetensors", "pt") as file:
        best = json.loads(file.metadata()["provenance"])
    assert best == {"step": min(losses, key=losses.get), "held_out_loss": min(losses.values())}
    assert len(losses) > 2 and best["held_out_loss"] < max(losses.values())


def test_a_disk_that_fills_is_a_sentence(place, monkeypatch):
    copyfile = shutil.copyfile

    def full(source, target):
        if "out" in str(target):
            raise OSError(28, "No space left on device", "metrics.jsonl")
        return copyfile(source, target)

    monkeypatch.setattr("shutil.copyfile", full)
    result = run(place)
    assert result.returncode == 2 and "metrics.jsonl: No space left on device" in result.stderr


def test_a_student_can_be_a_teacher_with_the_tokenizer_beside_it(place):
    assert run(place).returncode == 0
    result = run(place, teacher=place / "out" / "student.safetensors", tokenizer=None, out=place / "again")
    assert result.returncode == 0 and "from the teacher's layers 0\n" in result.stdout


def test_the_schedule_is_what_the_optimiser_gets(place, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def spy(self, *arguments, **keywords):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    assert run(place, steps=4, warmup=0.5, lr=0.01).returncode == 0
    assert rates == [[rate, rate] for rate in (0.005, 0.01, 0.01, 0.005)]


def test_the_seed_decides_the_first_weights_too(place):
    for seed in (1, 2):
        sizes = dict(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=24)
        assert run(place, teacher="none", out=place / str(seed), seed=seed, lr=1e-30, **sizes).returncode == 0
    first, second = (load_model(place / seed / "student.safetensors").dense.weight for seed in "12")
    assert not torch.allclose(first, second, atol=1e-3)


def test_the_same_seed_gives_the_same_student_to_the_last_bit(place):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(place, out=place / out, seed=seed, dropout=0.1).returncode == 0
    a, b, c = (load_model(place / out / "student.safetensors").state_dict() for out in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_without_a_teacher_it_is_masked_lm_alone(place):
    sizes = dict(num_layers=1, hidden_size=16, num_heads=2, intermediate_size=24)
    result = run(place, teacher="none", **sizes)
    assert result.returncode == 0, result.stderr
    config = load_model(place / "out" / "student.safetensors").config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.intermediate_size) == (1, 16, 2, 24)
    assert config.vocab_size == 1005
    for line in metrics(place / "out"):
        assert line["loss"] == pytest.approx(line["mlm_loss"]) and line["soft_label_loss"] is None
    assert "teacher  " not in result.stdout


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_mixed_precision_on_the_cpu_stays_near_fp32(place, precision, accumulate):
    for out, used in (("half", precision), ("full", "fp32")):
        result = run(place, precision=used, out=place / out, accumulate=accumulate)
        assert result.returncode == 0, result.stderr
    for half, full in zip(metrics(place / "half"), metrics(place / "full")):
        assert half["loss"] != full["loss"]
        assert half["loss"] == pytest.approx(full["loss"], rel=0.02)
        assert half["gradient_norm"] == pytest.approx(full["gradient_norm"], rel=0.1)
    student = load_model(place / "half" / "student.safetensors")
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "expected"), [("fp16", True), ("bf16", False), ("fp32", False)])
def test_only_fp16_scales_the_loss(place, monkeypatch, precision, expected):
    made, scaler = [], torch.amp.GradScaler

    def spy(device, enabled):
        made.append(enabled)
        return scaler(device, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", spy)
    assert run(place, precision=precision, steps=1).returncode == 0
    assert made == [expected]


def test_fp16_takes_the_scaler_and_leaves_out_a_step_that_overflows(teacher):
    student = initialise_student(teacher, [0])
    optimiser = train.make_optimiser(student, train.Options())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = student.dense.weight.detach().clone()
    (student.dense.weight.sum() * scaler.scale(torch.tensor(float("inf")))).backward()
    train.optimiser_step(student, optimiser, scaler, 1.0, train.Options())
    assert torch.equal(student.dense.weight, before) and scaler.get_scale() == 2.0**9


def test_a_compiled_run_is_the_same_run(place):
    """Dropout included: compiled or not, the same generator draws it."""
    torch._dynamo.reset()
    lines = []
    for compile in ("off", "on"):
        result = run(place, out=place / compile, compile=compile, dropout=0.1, chunk_mb=1, layers="0", steps=2)
        assert result.returncode == 0, result.stderr
        assert ("compiled  the first step took" in result.stdout) == (compile == "on")
        lines.append(metrics(place / compile))
    for eager, compiled in zip(*lines, strict=True):
        for name in ("loss", "soft_label_loss", "cosine_loss", "mlm_loss", "gradient_norm"):
            assert compiled[name] == pytest.approx(eager[name], rel=1e-4)


def test_a_compiler_that_does_not_work(place, monkeypatch):
    def broken(*arguments, **keywords):
        raise RuntimeError("no compiler found")

    monkeypatch.setattr("torch.compile", broken)
    result = run(place, compile="on")
    assert result.returncode == 2
    assert "--compile on: no compiler works here for cpu (no compiler found)" in result.stderr


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_teachers_matrices_are_cast_once(teacher, precision):
    """To what autocast makes of them at every product: the same outputs, but for rounded word rows."""
    runtime = Runtime(torch.device("cpu"), precision)
    input_ids = packed(TEXTS, TOKENIZER, 24)[:8]
    with runtime.autocast():
        expected = teacher(input_ids).float()
        train.make_ready(teacher, teacher, runtime)
        actual = teacher(input_ids).float()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert teacher.decoder.dtype == teacher.encoder.layers[0].feed_forward.feed.weight.dtype == half
    assert teacher.norm.weight.dtype == torch.float32
    assert relative_norm(actual, expected) < 4 * torch.finfo(half).eps


def test_a_student_learns(place):
    result = run(place, teacher="none", steps=60, num_layers=1, hidden_size=32, num_heads=2, intermediate_size=32,
                 lr=0.01, batch_size=8, log_every=20, dropout=0)  # fmt: skip
    assert result.returncode == 0
    losses = [line["loss"] for line in metrics(place / "out")]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 5.9  # ln 1005 is 6.9


@pytest.mark.parametrize("layers", ["3,1", ["3", "1"]])
def test_every_way_to_name_layers_and_the_other_direction(place, layers):
    result = run(place, layers=layers, direction="teacher-student", temperature=2, weights=[1, 0, 1])
    assert result.returncode == 0 and "layers 3, 1" in result.stdout and "teacher-student" in result.stdout
    line = metrics(place / "out")[0]
    assert line["loss"] == pytest.approx(line["soft_label_loss"] + line["mlm_loss"], rel=1e-5)


def test_any_student_can_be_gone_on_from(place):
    torch.manual_seed(1)
    save_model(MaskedLM(EncoderConfig(3, 32, 2, 64, 1005)), place / "student.safetensors")
    result = run(place, student=place / "student.safetensors", lr=1e-30, steps=2)
    assert result.returncode == 0 and f"from {place / 'student.safetensors'}" in result.stdout
    before, after = (load_model(path / "student.safetensors").state_dict() for path in (place, place / "out"))
    assert before.keys() == after.keys() and all(
        torch.allclose(before[name], after[name], rtol=0, atol=1e-20) for name in before
    )
    result = run(place, student=place / "student.safetensors", layers="0", out=place / "other")
    assert result.returncode == 2 and "--layers goes without --student" in result.stderr


def test_a_teacher_of_another_width_is_met_by_a_projection(place, teacher):
    """Learned for equation (11), and not in the student's file."""
    torch.manual_seed(1)
    save_model(MaskedLM(EncoderConfig(2, 16, 2, 24, 1005, dropout=0.0)), place / "student.safetensors")
    result = run(place, student=place / "student.safetensors", lr=0.01, steps=60, log_every=20, weights=[0, 1, 0.1])
    assert result.returncode == 0, result.stderr
    cosines = [line["cosine_loss"] for line in metrics(place / "out")]
    assert cosines[0] > cosines[1] > cosines[2] and cosines[2] < 0.7 * cosines[0]
    assert load_model(place / "out" / "student.safetensors").config.hidden_size == 16


def test_the_gradient_with_a_projection_is_that_of_equation_11(teacher):
    import torch.nn.functional as F

    (batch, *_) = uneven_batches()
    torch.manual_seed(2)
    student = MaskedLM(EncoderConfig(2, 16, 2, 24, 1005, dropout=0.0))
    options = train.Options(weights=(0.0, 1.0, 0.0))
    distiller = train.Distiller(student, teacher, options)
    train.accumulate_gradients(distiller, teacher, [batch], options, MACHINE, DISABLED)
    actual = distiller.projection.weight.grad.clone(), student.encoder.embeddings.word.weight.grad.clone()
    distiller.zero_grad()
    hidden = distiller.projection(student.encoder(*batch[::2]))[batch.real]
    F.cosine_embedding_loss(hidden, teacher.encoder(*batch[::2])[batch.real], torch.ones(1)).backward()
    expected = distiller.projection.weight.grad, student.encoder.embeddings.word.weight.grad
    for one, other in zip(actual, expected):
        assert relative_norm(one, other) < 1e-5 and other.norm() > 0


TRACE = [  # loss, soft labels, cosine, masked LM of the demo's first steps, in fp32 on the CPU
    [2.745132, 3.089669, 0.501824, 5.248749],
    [2.220595, 2.236470, 0.488881, 4.778475],
    [2.048315, 1.771324, 0.471297, 5.106320],
    [1.945746, 1.696219, 0.457054, 4.802602],
]


def test_the_demo_and_its_loss_trace(tmp_path):
    """`python train.py` as a newcomer runs it, cut short. A refactoring keeps these numbers, or says why not."""
    result = run_command("train.py", "--steps", "4", "--log-every", "1", "--precision", "fp32", "--out", tmp_path,
                         "--cache", tmp_path / "cache")  # fmt: skip
    assert result.returncode == 0, result.stderr
    for words in ("the corpus is a demo", "That was the demo. The real thing", "--teacher camembert-base"):
        assert words in result.stdout
    with safe_open(tmp_path / "student.safetensors", "pt") as file:
        accuracy = json.loads(file.metadata()["provenance"])["held_out_accuracy"]
    assert accuracy["teacher"] > 0.7 > accuracy["student before"]
    names = ("loss", "soft_label_loss", "cosine_loss", "mlm_loss")
    trace = [[line[name] for name in names] for line in metrics(tmp_path)]
    assert [pytest.approx(line, rel=2e-3) for line in TRACE] == trace  # other processors round otherwise


@needs(MINI, REAL_TOKENIZER, REAL_TEXT)
def test_real_weights_and_real_text(tmp_path):
    lines = (REAL_TEXT / "ud_french_sentences.txt").read_text(encoding="utf-8").split("\n")[:400]
    (tmp_path / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    result = run(tmp_path, teacher=MINI / "model.safetensors", tokenizer=REAL_TOKENIZER, steps=2, batch_size=1)
    assert result.returncode == 0, result.stderr
    assert load_model(tmp_path / "out" / "student.safetensors").config.num_layers == 3
    with safe_open(tmp_path / "out" / "student.safetensors", "pt") as file:
        accuracy = json.loads(file.metadata()["provenance"])["held_out_accuracy"]
    assert accuracy["teacher"] > accuracy["student before"] > 0.05


# ---- what goes wrong -------------------------------------------------------------------------------------------


def test_lines_that_are_not_utf8_are_a_warning(place):
    text = (place / "corpus.txt").read_bytes()
    (place / "corpus.txt").write_bytes("déjà\n".encode("latin-1") + text + b"\n\xff\xfe\n")
    result = run(place)
    assert result.returncode == 0 and "2 lines that are not UTF-8" in result.stdout


def test_a_run_is_never_written_over(place):
    assert run(place).returncode == 0
    before = (place / "out" / "student.safetensors").read_bytes()
    result = run(place, steps=2)
    assert result.returncode == 2 and "holds a run with other --steps. Give the same" in result.stderr
    assert (place / "out" / "student.safetensors").read_bytes() == before


def test_the_teachers_own_folder_can_be_the_output(place):
    (place / "sentencepiece.bpe.model").write_bytes(TOKENIZER.path.read_bytes())
    assert run(place, tokenizer=None, out=place).returncode == 0
    assert (place / "student.safetensors").exists()
    assert (place / "sentencepiece.bpe.model").read_bytes() == TOKENIZER.path.read_bytes()


def test_another_tokenizer_in_the_output_folder_is_kept(place):
    (place / "out").mkdir()
    (place / "out" / "sentencepiece.bpe.model").write_bytes(b"precious")
    result = run(place)
    assert result.returncode == 2 and "is another tokenizer than" in result.stderr
    assert (place / "out" / "sentencepiece.bpe.model").read_bytes() == b"precious"


def test_an_interruption_is_a_sentence_with_status_130(place, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.progress.progress_line", interrupt)
    result = run(place)
    assert result.returncode == 130 and "interrupted" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("option", ["out", "teacher", "tokenizer", "corpus", "device"])
def test_an_empty_word_is_refused(place, option):
    result = run(place, **{option: ""})
    assert result.returncode == 2 and f"--{option} is empty" in result.stderr


def small_blocks(folder):
    (folder / "corpus.txt").write_text("Un film.\n")


def latin(folder):
    (folder / "corpus.txt").write_bytes("été\n".encode("latin-1") * 50)


def nothing(folder):
    pass


WRONG = {
    "no such teacher": (nothing, dict(teacher="nothing.safetensors"), "There is no file nothing.safetensors"),
    "a text as teacher": (nothing, dict(teacher="LICENSE"), "neither a .safetensors file nor"),
    "a tokenizer of another size": (
        nothing, dict(tokenizer=REAL_TOKENIZER), "they do not belong together"
    ),
    "no tokenizer": (nothing, dict(tokenizer=None), "No sentencepiece.bpe.model lies beside the teacher"),
    "no such tokenizer": (nothing, dict(tokenizer="nothing.model"), "no tokenizer nothing.model"),
    "no such corpus": (nothing, dict(corpus="nothing.txt"), "There is no corpus nothing.txt"),
    "an empty corpus": (lambda f: (f / "corpus.txt").write_text("\n \n"), {}, "no usable line"),
    "a corpus that is not UTF-8": (latin, {}, "no usable line"),
    "a corpus of special tokens": (
        lambda f: (f / "corpus.txt").write_text("".join("<mask> " * n + "\n" for n in range(120))), {}, "is masked"
    ),
    "a corpus of nothing visible": (lambda f: (f / "corpus.txt").write_text("\u200b\n" * 500), {}, "no usable line"),
    "real text without a tokenizer": (nothing, dict(teacher="none", tokenizer=None), "No sentencepiece.bpe.model"),
    "a seed too large": (nothing, dict(seed=2**64), "--seed must be"),
    "more steps than a number holds": (nothing, dict(steps="9" * 400), "--steps must be"),
    "too many layers": (nothing, dict(teacher="none", num_layers=10**9), "--num-layers must be"),
    "too wide": (nothing, dict(teacher="none", hidden_size=10**9), "--hidden-size must be"),
    "a device of another PyTorch": (nothing, dict(device="hpu"), "--device hpu: this machine"),
    "too small a corpus": (small_blocks, {}, "less than one block"),
    "a folder without text": (lambda f: (f / "empty").mkdir(), dict(corpus="EMPTY"), "has no .txt, JSON lines"),
    "an output that is a file": (lambda f: (f / "out").write_text("x"), {}, "cannot be written"),
    "an output below a file": (nothing, dict(out="LICENSE/out"), "cannot be written"),
    "negative steps": (nothing, dict(steps=-1), "--steps must be at least 1"),
    "no batch": (nothing, dict(batch_size=0), "--batch-size must be at least 1"),
    "no accumulation": (nothing, dict(accumulate=0), "--accumulate must be at least 1"),
    "a block of 1": (nothing, dict(block_size=1), "--block-size must be at least 3"),
    "a block too long": (nothing, dict(block_size=513), "longer than the 512 tokens"),
    "no learning rate": (nothing, dict(lr=0), "--lr must be above 0"),
    "a rate that is no number": (nothing, dict(lr="nan"), "--lr must be above 0"),
    "temperature 0": (nothing, dict(temperature=0), "--temperature must be above 0"),
    "warm-up above 1": (nothing, dict(warmup=1.5), "--warmup must be at least 0 and at most 1"),
    "dropout 1": (nothing, dict(dropout=1), "--dropout must be at least 0 and below 1"),
    "negative weights": (nothing, dict(weights=[-1, 1, 1]), "--weights must be at least 0"),
    "zero weights": (nothing, dict(weights=[0, 0, 0]), "--weights takes three numbers"),
    "two weights": (nothing, dict(weights=[0.5, 0.5]), "expected 3 arguments"),
    "layers that are not there": (nothing, dict(layers="0,4"), "there is no layer 4"),
    "layers of another teacher": (nothing, dict(layers="distilbert"), "of a teacher of 12"),
    "0 heads": (nothing, dict(teacher="none", num_heads=0), "--num-heads must be at least 1"),
    "769 / 12": (nothing, dict(teacher="none", hidden_size=769, num_heads=12), "769 cannot be shared out among 12"),
    "sizes with a teacher": (nothing, dict(hidden_size=64), "--hidden-size goes with --teacher none"),
    "a device that is not there": (nothing, dict(device="cuda:7"), "--device cuda:7: this machine"),
    "a device that does not exist": (nothing, dict(device="abacus"), "--device abacus"),
    "an unknown precision": (nothing, dict(precision="fp8"), "invalid choice"),
    "no memory for the loss": (nothing, dict(chunk_mb=0), "--chunk-mb must be at least 1"),
    "an unknown direction": (nothing, dict(direction="reverse"), "invalid choice"),
    "a number that is none": (nothing, dict(steps="many"), "invalid int value"),
    "an unknown option": (nothing, dict(colour="red"), "unrecognized arguments"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_a_sentence_with_status_2(place, case):
    spoil, changed, sentence = WRONG[case]
    if case == "a tokenizer of another size" and not REAL_TOKENIZER.exists():
        pytest.skip(f"real data is not here: {REAL_TOKENIZER}")
    if case == "a device that is not there" and torch.cuda.device_count() > 7:
        pytest.skip("the device is there")
    spoil(place)
    changed = {name: str(place / "empty") if value == "EMPTY" else value for name, value in changed.items()}
    result = run(place, **changed)
    assert result.returncode == 2, result
    assert sentence in result.stderr and "Traceback" not in result.stderr
    out = place / "out"
    assert not out.is_dir() or set(os.listdir(out)) <= {"run.json"}  # nothing under a final name


@pytest.mark.parametrize("steps", [30, 1])
def test_a_loss_that_is_no_number_ends_with_status_3(place, steps):
    result = run(place, lr=1e30, clip=1e30, steps=steps)
    assert result.returncode == 3
    assert "smaller --lr" in result.stderr
    assert not (place / "out" / "student.safetensors").exists()


def test_help_is_a_page_that_names_every_option():
    result = run_command("train.py", "--help")
    assert result.returncode == 0
    for name in train.Options.__dataclass_fields__:
        assert re.search(rf"--{name.replace('_', '-')}[ ,]", result.stdout), name
    assert len(result.stdout.splitlines()) < 90
    assert max(map(len, result.stdout.splitlines())) <= 110
