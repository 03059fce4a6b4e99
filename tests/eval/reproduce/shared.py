"""Made-up results of `reproduce`: accuracies at the demo's or at real French's magnitudes."""

from pathlib import Path

import numpy

from eval.tasks.table2 import MEASURES

VARIANTS = {  # name: its final accuracy, relative to the teacher's
    "paper": 0.93,
    "mlm-only": 0.9,
    "random": 0.5,
    "no-cosine": 0.928,
    "no-soft-labels": 0.91,
    "teacher-student-T2": 0.935,
    "last-half": 0.85,
    "first-half": 0.89,
    "both-ends": 0.932,
    "hidden-states": 0.931,
    "attention-relations": 0.94,
    "mask-40": 0.927,
    "average": 0.965,
}
BLOCKS, MASKED = 100, 20  # held-out blocks, masked tokens in each
MODELS = {"teacher": 0.8, "paper": 0.7, "mlm-only": 0.65}  # their values on every measure


def made_up(folder: Path, seeds=3, variants=tuple(VARIANTS), teacher=0.75, tasks=tuple(MEASURES), demo=True) -> dict:
    """Results whose counts lie in the folder. Accuracies grow from seed to seed by 0.1, 0.2 or 0.3 points."""
    random = numpy.random.default_rng(0)
    difficulty = random.random((BLOCKS, MASKED))  # of each masked token, nearly the same for all
    teacher_right = (difficulty < numpy.quantile(difficulty, teacher)).sum(axis=1)
    tokens, found = 500_000 if demo else 2_000_000, {}
    for index, name in enumerate(variants):
        runs = []
        for seed in range(seeds):
            mine = difficulty + random.normal(0, 0.02, difficulty.shape)
            wanted = VARIANTS[name] * teacher + 0.001 * seed * (1 + index % 3)
            right = (mine < numpy.quantile(mine, wanted)).sum(axis=1)
            accuracy = float(right.sum() / (BLOCKS * MASKED))
            columns = [numpy.full(BLOCKS, MASKED), right, numpy.minimum(right + 1, MASKED), teacher_right]
            counts = f"runs/{name}-{seed}/counts.npy"
            (folder / counts).parent.mkdir(parents=True, exist_ok=True)
            numpy.save(folder / counts, numpy.stack(columns, axis=1))
            start = 0.0 if name == "random" else 0.3 * teacher
            curve = [
                [round(tokens * x), accuracy - (accuracy - start) * float(numpy.exp(-5 * x))]
                for x in (0, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
            ]
            run = {"seed": seed, "command": f"python train.py --seed {seed} --out {name}-{seed}", "tokens": tokens}
            run |= {
                "seconds": 60.0,
                "accuracy": accuracy,
                "agreement": float(columns[2].sum() / columns[0].sum()),
                "mlm_loss": 2.0 - accuracy,
            }
            on_curve = None if name == "random" else teacher - 0.01
            runs.append(run | {"counts": counts, "curve": curve, "teacher_on_curve": on_curve})
        found[name] = {"about": f"what makes {name} of the paper's loss", "runs": runs}
    return {
        "command": "python -m eval reproduce",
        "options": {},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "files": {},
        "seeds": list(range(seeds)),
        "date": "2026-11-27T12:00:00+00:00",
        "scale": {
            **{
                "teacher": "demo",
                "corpus": "demo",
                "is_demo": demo,
                "tokens": tokens,
                "teacher_tokens": 0,
                "steps": 300,
            },
            **{"teacher_layers": 4, "student_layers": 2, "hidden_size": 128, "vocab_size": 3005},
            **{"held_out_blocks": BLOCKS, "masked_tokens": BLOCKS * MASKED},
            **{"device": "cpu", "precision": "fp32", "processor": "a processor"},
        },
        "parameters": {
            "teacher": {"equation_9": 110_030_592, "counted": 110_030_592},
            "student": {"equation_9": 67_503_360, "counted": 67_503_361},
        },
        "teacher": {
            "accuracy": {"value": teacher, "low": teacher - 0.01, "high": teacher + 0.01},
            "mlm_loss": 1.2,
        },
        "variants": found,
        "tasks": {task: made_up_task(task, seeds) for task in tasks},
        "not_done": [],
    }


def made_up_task(task: str, seeds: int) -> dict:
    """Seed s of the teacher and the distilled student is s points above seed 0; masked LM alone is always the same."""

    def test(value: float) -> dict:
        return {measure: {"value": value, "low": value - 0.03, "high": value + 0.02} for measure in MEASURES[task]}

    gains = {"teacher": 0.01, "paper": 0.01, "mlm-only": 0.0}
    return {
        "baseline": dict.fromkeys(MEASURES[task], 0.25),
        "models": {
            name: [{"seed": seed, "test": test(value + gains[name] * seed)} for seed in range(seeds)]
            for name, value in MODELS.items()
        },
        "milliseconds": {"teacher": 10.0, "student": 4.0, "student, int8": 2.0},
        "int8": {"equal_to_fp32": 0.992} | {measure: [0.71, 0.703] for measure in MEASURES[task]},
    }
