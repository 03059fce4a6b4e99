"""The variants, and a plan whose jobs fit in the time."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data.cli import OptionError, parse_options
from data.tasks import TextExample
from eval.reproduce import work
from eval.reproduce.plan import (
    Setup,
    Sizes,
    Speed,
    TaskSize,
    choose_lengths,
    make_jobs,
    seconds_of,
    speed_of,
    task_folder,
)
from eval.reproduce.variants import NAMES, PAPER, make_variants
from eval.tasks.finetune import Options as FinetuneOptions
from eval.tasks.table2 import Options as Table2Options
from eval.tasks.table2 import TaskData
from model import EncoderConfig
from model.student import DISTILBERT_LAYERS
from model.training.optim import default_lr
from model.training.options import Options as TrainOptions

BASE = EncoderConfig.camembert()
SIZES = Sizes(BASE, EncoderConfig.distilcamembert(), 128, 1024, 0.15)
SPEED = Speed(5e12, 5.0, 1e13)  # a small GPU


FINETUNE = dict(model="m", out="o", train=("t",), dev=("d",), device="cpu", epochs=3, step_tokens=1024)


def setup(tmp_path, names=NAMES, seeds=(0, 1, 2), pretrained=(), tasks=("nli", "qa")):
    measuring = work.Measuring(Path("corpus"), "tokenizer", 128, 4096, "cpu", "fp32", str(tmp_path / "teacher"))
    variants = [variant for name, variant in make_variants(BASE).items() if name in names]
    texts = [TextExample("un texte " * 20, "1")] * 1000
    data = [TaskData(task, {"train": texts, "dev": texts[:100], "test": texts[:100]}, ("file",)) for task in tasks]
    options = Table2Options(teacher="t", student="t", data="tasks", epochs=3)
    sizes = [TaskSize.of(each) for each in data]
    rest = measuring, variants, seeds, (), 1.2345e-4, SIZES, data, sizes, "tasks", options, ""
    return Setup(tmp_path, torch.device("cpu"), False, "t", pretrained, *rest)


def arguments_of(variant):
    return dict(zip(variant.arguments[::2], variant.arguments[1::2]))


def test_the_layers_of_twelve():
    """DistilBERT's choice is that of its script; a half is the last or the first six."""
    found = {name: arguments_of(variant).get("--layers") for name, variant in make_variants(BASE).items()}
    assert found["both-ends"] == ",".join(map(str, DISTILBERT_LAYERS))
    assert found["last-half"] == "6,7,8,9,10,11" and found["first-half"] == "0,1,2,3,4,5" and found[PAPER] is None


CHANGED = {  # options of train.py by which a variant of a teacher of twelve layers differs from the paper's loss
    "paper": {},
    "mlm-only": {"weights": (0.0, 0.0, 1.0)},
    "random": {
        "teacher": "none",
        "lr": default_lr(768, False),
        "num_layers": 6,
        "hidden_size": 768,
        "num_heads": 12,
        "intermediate_size": 3072,
    },
    "no-cosine": {"weights": (0.5, 0.0, 0.2)},
    "no-soft-labels": {"weights": (0.0, 0.3, 0.2)},
    "teacher-student-T2": {"direction": "teacher-student", "temperature": 2.0},
    "last-half": {"layers": ("6,7,8,9,10,11",)},
    "first-half": {"layers": ("0,1,2,3,4,5",)},
    "both-ends": {"layers": ("0,2,4,7,9,11",)},
    "hidden-states": {"hidden_weight": 1.0},
    "relations": {"relation_weight": 0.03},
    "masking-15": {"masking_rate": 0.15},
}


def test_each_variant_differs_in_its_own_options_alone():
    variants = make_variants(BASE)
    assert tuple(variants) == NAMES == tuple(CHANGED)
    for name, variant in variants.items():
        options = asdict(parse_options(TrainOptions, variant.arguments, "", ""))
        assert {key: value for key, value in options.items() if value != getattr(TrainOptions(), key)} == CHANGED[name]


def test_no_choice_of_layers_twice():
    one_layer = EncoderConfig(num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8, vocab_size=20)
    assert not {"last-half", "first-half", "both-ends", "hidden-states"} & set(make_variants(one_layer))
    assert tuple(make_variants(BASE)) == NAMES


@pytest.mark.parametrize("pretrained", [(), ("--teacher", "none")])
@pytest.mark.parametrize("minutes", [40, 400])
def test_all_jobs_fit_in_the_minutes(tmp_path, minutes, pretrained):
    """Of the time, 80 % or more is used."""
    shared = setup(tmp_path, pretrained=pretrained)
    lengths = choose_lengths(shared, SPEED, 1, None, 60 * minutes, number=4)
    seconds = seconds_of(make_jobs(shared, SPEED, lengths), 4)
    assert 0.8 * 60 * minutes < seconds < 60 * minutes
    assert bool(lengths.teacher_tokens) == bool(pretrained)
    assert lengths.tokens % SIZES.step_tokens == lengths.teacher_tokens % SIZES.step_tokens == 0


def test_little_time_leaves_room_for_distillation(tmp_path):
    """Fine-tuning gets fewer examples, and fewer blocks are measured."""
    shared = setup(tmp_path, names=("paper", "mlm-only"), seeds=(0,))
    lengths = choose_lengths(shared, SPEED, 1, None, 60 * 6.0, number=1)
    tasks = [job for job in make_jobs(shared, SPEED, lengths) if job.run is work.finetune_on_all]
    assert lengths.limit < 1000 and seconds_of(tasks, 1) < 0.4 * 60 * 6
    assert lengths.blocks < 4096
    with pytest.raises(OptionError, match="--minutes is too little"):
        choose_lengths(shared, SPEED, 1, None, 60, number=1)


def test_tokens_that_are_given_stay(tmp_path):
    assert choose_lengths(setup(tmp_path), SPEED, 1_000_000, 50, None, 2) == (1_000_448, 0, 50, 4096)
    assert choose_lengths(setup(tmp_path, pretrained=("x",)), SPEED, 1024, None, None, 2) == (1024, 4096, None, 4096)


def test_every_job_comes_after_what_it_needs_and_the_main_ones_first(tmp_path):
    jobs = make_jobs(
        setup(tmp_path, pretrained=("--teacher", "none")),
        SPEED,
        choose_lengths(setup(tmp_path), SPEED, 10**6, None, None, 2),
    )
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names) == 1 + 1 + 3 * len(NAMES) + 3 * 3 + 1
    for index, job in enumerate(jobs):
        assert set(job.after) <= set(names[:index])
    assert names[:5] == ["teacher", "teacher-held-out", "paper-0", "mlm-only-0", "random-0"]
    assert names.index("speed") < names.index("no-cosine-0")
    assert len({path for job in jobs for path in job.done}) == sum(len(job.done) for job in jobs)


def test_a_task_that_is_added_is_done_too(tmp_path):
    """Whether it stands before or after those that are done."""
    for task in ("nli", "qa"):
        shared = setup(tmp_path / task, names=(PAPER,), seeds=(0,))
        jobs = {job.name: job for job in make_jobs(shared, SPEED, choose_lengths(shared, SPEED, 10**6, None, None, 2))}
        for model in ("teacher", PAPER):
            figures = task_folder(shared, task, model, 0) / work.FIGURES
            figures.parent.mkdir(parents=True)
            figures.touch()
        (tmp_path / task / "tasks" / task / work.SPEEDS).touch()
        assert not any(jobs[name].is_done() for name in ("tasks-teacher-0", "tasks-paper-0", "speed"))


def test_the_students_of_a_seed_differ_in_their_variant_alone(tmp_path):
    jobs = make_jobs(setup(tmp_path), SPEED, choose_lengths(setup(tmp_path), SPEED, 10**6, None, None, 2))
    runs = {job.name: job.arguments[0] for job in jobs if job.run is work.train_and_measure}
    steps = {
        tuple(arguments[arguments.index("--steps") : arguments.index("--seed") + 2])
        for name, arguments in runs.items()
        if name.endswith("-1")
    }
    assert steps == {
        ("--steps", "977", "--log-every", "50", "--eval-every", "163", "--checkpoint-every", "163", "--seed", "1")
    }
    assert runs["paper-1"][:5] == ["--teacher", "t", "--lr", "0.00012345", "--steps"]
    assert runs["no-cosine-1"][:7] == ["--teacher", "t", "--lr", "0.00012345", "--weights", "0.5", "0"]
    assert runs["random-1"][:4] == ["--teacher", "none", "--lr", str(default_lr(768, False))]
    assert all(run.count("--teacher") == run.count("--lr") == 1 for run in runs.values())


def test_the_learning_rate_of_a_random_start():
    """The others', if it is given or they are narrow; else smaller, which its description says."""
    narrow = EncoderConfig(num_layers=4, hidden_size=256, num_heads=4, intermediate_size=8, vocab_size=20)
    for teacher, lr, expected, told in (
        (BASE, None, str(default_lr(768, False)), True),
        (BASE, 1.2345e-4, "0.00012345", False),
        (narrow, None, "0.001", False),
    ):
        random = make_variants(teacher, lr)["random"]
        assert arguments_of(random)["--lr"] == expected
        assert ("learning rate 0.00011, of the others 0.00033" in random.about) == told


def test_of_a_run_that_was_stopped_what_is_left_is_expected(tmp_path):
    """The steps after its last checkpoint: 377 of 977."""
    shared = setup(tmp_path, names=(PAPER,), pretrained=("--teacher", "none"), seeds=(0,), tasks=())
    lengths = choose_lengths(shared, SPEED, 10**6, None, None, 2)._replace(teacher_tokens=1_000_448)
    names, step = ("teacher", "paper-0"), SIZES.step_tokens
    before = {job.name: job.seconds for job in make_jobs(shared, SPEED, lengths) if job.name in names}
    for folder in (tmp_path / "teacher", tmp_path / "runs" / "paper-0"):
        for steps in (300, 600):
            (folder / "checkpoints" / f"step-{steps:09}").mkdir(parents=True)
    after = {job.name: job.seconds for job in make_jobs(shared, SPEED, lengths) if job.name in names}
    for name, kind in zip(names, ("teacher", "distil")):
        saved = SPEED.run(SIZES, kind, 977 * step) - SPEED.run(SIZES, kind, 377 * step)
        assert before[name] - after[name] == pytest.approx(saved) and saved > 0.1


def test_without_a_student_to_fine_tune_the_teacher_is_not(tmp_path):
    shared = setup(tmp_path, names=("random", "no-cosine"))
    jobs = make_jobs(shared, SPEED, choose_lengths(shared, SPEED, 10**6, None, None, 2))
    assert not any(job.run in (work.finetune_on_all, work.time_on_all) for job in jobs)


def test_the_speed_is_that_of_the_slowest_process_and_the_teachers_that_of_one_alone():
    timings = [{"seconds_per_token": 0.01, "overhead": 3.0}, {"seconds_per_token": 0.02, "overhead": 2.0}]
    speed = speed_of({"seconds_per_token": 0.004, "overhead": 9.0}, timings, SIZES, "distil")
    assert speed.overhead == 3 and SIZES.flops("distil") / speed.flops == pytest.approx(0.02)
    assert SIZES.flops("distil") / speed.flops_alone == pytest.approx(0.004)
    same = speed._replace(flops_alone=speed.flops)
    assert speed.run(SIZES, "teacher", 10**6) == pytest.approx(same.run(SIZES, "teacher", 10**6) / 5, rel=1e-3)
    assert same.run(SIZES, "random", 1000) < same.run(SIZES, "teacher", 1000) < same.run(SIZES, "distil", 1000)


def test_on_a_gpu_small_steps_of_fine_tuning_wait_for_the_host():
    """12 layers × 10 ms × steps, beside the computation; none on a CPU."""
    task, settings = TaskSize(1000, {"train": 102_400.0, "dev": 0.0, "test": 0.0}), FinetuneOptions(**FINETUNE)
    on_cpu, on_gpu = (SPEED.finetuning(BASE, task, settings, None, on_gpu) for on_gpu in (False, True))
    assert on_gpu - on_cpu == pytest.approx(12 * 0.01 * 3 * 100)
