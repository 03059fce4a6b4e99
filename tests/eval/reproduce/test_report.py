"""report.md: its figures, its verdicts, and what is left out where there is nothing to say."""

import re

import pytest

from eval.reproduce.report import report
from eval.reproduce.summary import summary
from eval.tasks.table2 import CARDS, MEASURES, PAPER, published
from tests.eval.reproduce.shared import made_up

NAMES = ("paper", "mlm-only", "random", "average")


def written(results, folder):
    return report(results, summary(results, folder), folder)


def in_one_line(text):
    return " ".join(text.split())


def rows(text, first):
    """The cells of the row of each table that begins with this cell."""
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def test_everything(tmp_path):
    (tmp_path / "accuracy.png").touch()
    results = made_up(tmp_path, variants=NAMES)
    results["not_done"] = ["no-cosine, seed 2: not enough time left"]
    results["variants"]["random"]["runs"][1]["tokens"] = 123_456
    text = written(results, tmp_path)
    prose = in_one_line(text)
    assert "The teacher's accuracy is 75.00 [74.00, 76.00] % (interval over text), its MLM loss 1.200." in prose
    assert "the demo's invented world" in text and "300 steps, but `random`, seed 1: 123,456" in prose
    assert rows(text, "teacher") == [["teacher", "4", "110,030,592", "110,030,592", "equal"]]
    assert rows(text, "student") == [["student", "2", "67,503,360", "67,503,361", "+1"]]

    accuracy, change = rows(text, "`mlm-only`")  # 67.5, 67.7 and 67.9 %; the paper's loss 69.75, 69.85 and 69.95 %
    assert accuracy[:4] == ["`mlm-only`", "0, 1, 2", "67.70 ± 0.20", "[67.20, 68.20]"]
    assert accuracy[5].startswith("90.27 ± 0.27 [") and accuracy[7] == "1.323"
    assert change[:4] == ["`mlm-only`", "3", "-2.15", "[-2.40, -1.90]"] and change[5] == "< 0.001"
    assert len(rows(text, "`paper`")) == 1 and all(f"- `{name}`: what makes {name}" in text for name in NAMES)
    assert "**Is distilled > masked LM alone > random start? Yes" in text
    assert re.search(
        r"distilled > masked LM alone: yes; difference \+2\.15 points, \[\+1\.90, \+2\.40\] over seeds", prose
    )
    assert "distilled 69.85 [69.60, 70.10]; masked LM alone 67.70 [67.20, 68.20]; random start" in prose
    assert "two or three seeds" in prose and "Holm's p" in prose

    for task, measures in MEASURES.items():
        *of_measures, speed = rows(text, task)
        assert [row[1] for row in of_measures] == [measure.replace("_", " ") for measure in measures]
        for row, measure in zip(of_measures, measures):
            assert row[2:6] == ["25.00", "81.00 ± 1.00", "71.00 ± 1.00 (87.7%)", "65.00 ± 0.00 (80.3%)"]
            assert row[6:9] == ["+6.00 [+3.52, +8.48]", "0.009", "70.30 (-0.70)"]
            cells = [published(source.get((task, measure))) for source in (PAPER, CARDS)]
            assert [*row[9:], "", ""][:2] == cells
        assert speed == [task, "10.00", "4.00", "2.00", "× 2.50", "× 5.00", "99.20%"]
    assert "downstream? Yes**" in prose and "+6.00 [+3.52, +8.48] points" in prose and "on 4 of 4 tasks" in prose
    assert "## Not done\n\n- no-cosine, seed 2: not enough time left" in text
    assert "![held-out accuracy](accuracy.png)" in text and "table2.png" not in text and "speed.png" not in text
    assert "```\npython -m eval reproduce\npython train.py --seed 0 --out paper-0\n" in text
    assert all(len(line) <= 120 or line.startswith("|") for line in text.splitlines())


def test_one_seed_and_real_text(tmp_path):
    text = written(made_up(tmp_path, 1, NAMES, teacher=0.384, demo=False, tasks=("ner",)), tmp_path)
    assert "invented" not in text and "? Not shown.**" in text and "one seed gives no interval" in text
    (accuracy, change), (ner, *_) = rows(text, "`random`"), rows(text, "ner")
    assert accuracy[2:4] == ["19.20", "–"] and change[3] == change[5] == change[6] == "–"
    assert ner[4] == "70.00 (87.5%)" and ner[6:8] == ["+5.00", "–"] and "One seed does not say**" in text


@pytest.mark.parametrize(
    "shift, answer",
    [(0.05, "Yes"), (-0.2, "No, rather the opposite"), (-0.06, "Not measurably")],
)
def test_whether_distillation_shows_downstream(tmp_path, shift, answer):
    results = made_up(tmp_path, variants=(), tasks=("nli", "qa"))
    for run in [run for result in results["tasks"].values() for run in result["models"]["paper"]]:
        for metric in run["test"].values():
            metric["value"] += shift
    assert f"downstream? {answer}**" in in_one_line(written(results, tmp_path))


@pytest.mark.parametrize(
    "mlm_only, answer, sentence",
    [
        ([0.9, 0.9, 0.9], "No", "distilled > masked LM alone: no, it is not higher"),
        ([0.5, 0.6975, 0.8], "Not shown", "higher in the mean, but the intervals over seeds overlap"),
    ],
)
def test_the_verdict_is_the_true_one(tmp_path, mlm_only, answer, sentence):
    results = made_up(tmp_path, variants=("paper", "mlm-only", "random"))
    for run, accuracy in zip(results["variants"]["mlm-only"]["runs"], mlm_only):
        run["accuracy"] = accuracy
    text = in_one_line(written(results, tmp_path))
    assert f"> random start? {answer}.**" in text and sentence in text


def test_almost_nothing(tmp_path):
    text = written(made_up(tmp_path, variants=("mlm-only",), seeds=1, tasks=()), tmp_path)
    assert "Section 4" not in text and "Not done" not in text and "Differences" not in text
    assert text.count("not measured") == 2 and len(rows(text, "`mlm-only`")) == 1
    text = written(made_up(tmp_path, variants=(), tasks=("qa",), seeds=0), tmp_path)
    assert "No student is trained yet." in text and "not both fine-tuned" in text
    assert rows(text, "qa")[1][2:] == [
        "25.00",
        *["–"] * 5,
        "70.30 (-0.70)",
        "79.57 → 62.65 (78.7%)",
        "79.57 → 62.65 (78.7%)",
    ]


def test_what_is_kept_of_a_teacher_below_zero_is_not_said(tmp_path):
    results = made_up(tmp_path, variants=(), tasks=("nli",), seeds=1)
    results["tasks"]["nli"]["models"]["teacher"][0]["test"]["mcc"]["value"] = -0.01
    *_, accuracy, macro_f1, mcc, _ = [None, *rows(written(results, tmp_path), "nli")]
    assert accuracy[4] == macro_f1[4] == "70.00 (87.5%)" and mcc[3:5] == ["-1.00", "70.00"]


def test_while_it_runs(tmp_path):
    """The teacher is pre-trained, and fine-tuned before it is measured; nothing is timed."""
    results = made_up(tmp_path, variants=(), tasks=("ner",), seeds=1)
    results["teacher"] = {}
    results["scale"] |= {"teacher_tokens": 12_345, "held_out_blocks": None, "masked_tokens": None, "precision": None}
    for name in ("baseline", "milliseconds", "int8"):
        del results["tasks"]["ner"][name]
    del results["tasks"]["ner"]["models"]["paper"], results["tasks"]["ner"]["models"]["mlm-only"]
    text = written(results, tmp_path)
    assert "pre-trained here by masked LM on 12,345 tokens" in in_one_line(text) and "None" not in text
    assert "Held out" not in text and "Speed" not in text and "teacher's accuracy" not in text
    assert rows(text, "ner")[0][2:9] == ["–", "80.00", *["–"] * 5]
