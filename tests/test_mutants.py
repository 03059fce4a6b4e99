"""Planted faults: with any one of them in the code, the test named beside it must fail.

Code and tests are copied, one line is changed, and pytest runs there. A fault that no test sees lets that run
pass; a line that is not found any more is a failure too, so that the faults stay real. All runs are in one
process of their own, which imports torch and transformers once:  python tests/test_mutants.py
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
AGREES = "tests/model/test_encoder.py::test_every_hidden_state_and_the_logits_agree[two layers-torch.float64-1e-12]"
LITERAL = "tests/model/test_encoder.py::test_the_literal_equation_5_equals_scaled_dot_product_attention"
PACKED = "tests/model/test_packed.py::test_no_sequence_attends_to_another"
EQUALS = "tests/model/test_packed.py::test_packed_equals_padded"
FIRST = "tests/model/test_packed.py::test_packed_equals_padded[sorted-torch.float32-1e-05-first only]"
SOFT, COSINE, MLM = (f"tests/losses/test_{name}.py" for name in ("soft_label", "cosine", "mlm"))
RELATIONS = "tests/losses/test_relations.py"
EXTRA = "tests/model/training/test_extra_terms.py::test_the_gradient_is_that_of_both_terms_beside_equation_13"
ALL_THREE, FUSED = "tests/losses/test_distillation.py", "tests/losses/test_fused.py"
EQUAL = f"{FUSED}::test_it_is_equation_13"
HALF = f"{FUSED}::test_half_precision_is_no_worse_than_the_plain_form"
SCALED = f"{FUSED}::test_the_loss_scale_saves_small_gradients_in_fp16"
ACCUMULATED = "tests/test_train.py::test_accumulation_equals_one_batch"
ZERO_SHOT = "tests/eval/tasks/test_zero_shot.py::test_by_hand"
TAUGHT = "tests/eval/tasks/test_finetune_loss.py::test_tokens_without_a_target_are_not_distilled"
BEST_SPAN = "tests/eval/tasks/test_qa.py::test_the_best_span_is_the_best_of_all"
ROUND_TRIP = "tests/test_convert_weights.py::test_the_round_trip"
BARE_QUOTES = "tests/data/tasks/test_tables.py::test_bare_quotes_stay"
WORDS = "tests/data/tasks/test_parts.py::test_whole_words"
NO_ANSWER = "tests/eval/tasks/test_no_answer.py::test_the_first_token_of_the_window_where_it_is_lowest_counts"
LABELS = "tests/eval/tasks/test_multi_label.py::test_labels_are_those_above_one_half"
ASKED = "tests/eval/tasks/test_batching.py::test_the_last_layer_and_the_head_compute_only_the_tokens_that_are_asked_for"
MASKING = "tests/data/test_masking.py"
SEEDS = "tests/eval/reproduce/test_statistics.py::test_estimates_and_paired_tests_are_scipys"
RATE = f"{MASKING}::test_every_strategy_keeps_the_rate"
FAULTS = [  # name, file, what is changed, into what, the test that must see it
    ("position offset", "model/embeddings.py", "* is_token + pad_id", "* is_token + pad_id + 1", AGREES),
    ("position of padding", "model/embeddings.py", ".cumsum(dim=1) * is_token +", ".cumsum(dim=1) +", AGREES),
    ("pre-LayerNorm", "model/encoder.py", ".attention(hidden,", ".attention(self.attention_norm(hidden),", AGREES),
    ("token type left out", "model/checkpoints/huggingface.py", "= position + rows[0]", "= position", AGREES),
    ("one name of the LM bias", "model/checkpoints/export.py", '== "MaskedLM"', '== ""', ROUND_TRIP),
    ("attention scale", "model/attention.py", "attn_mask=mask,", "attn_mask=mask, scale=1.0,", AGREES),
    ("attention scale in (5)", "model/attention.py", "/ math.sqrt(queries.shape[-1])", "", LITERAL),
    ("attention mask in (5)", "model/attention.py", "(~attention_mask[", "(attention_mask[", LITERAL),
    ("padding of a run attended to", "model/packed.py", "if run.keys.is_padded:", "if False:", EQUALS),
    ("one row too far", "model/packed.py", "rows = [start + position", "rows = [start + position + 1", FIRST),
    ("a run in another order", "model/runs.py", "starts + offsets", "starts.flip(0) + offsets", PACKED),
    ("(15) as printed by default", "eval/tasks/zero_shot.py", "if printed else", "if not printed else", ZERO_SHOT),
    (
        "special tokens taught",
        "eval/tasks/finetune.py",
        "(targets != IGNORE_INDEX).to",
        "(targets == targets).to",
        TAUGHT,
    ),
    ("bare quotes taken away", "data/tasks/tables.py", "return all(matches) and any(", "return any(", BARE_QUOTES),
    (
        "a test file by half a word",
        "data/tasks/parts.py",
        "if word in PART_OF_WORD}",
        "if word[:4] in PART_OF_WORD}",
        WORDS,
    ),
    ("<s> of the highest window", "eval/tasks/qa.py", "no_answer = min(", "no_answer = max(", NO_ANSWER),
    ("a softmax over several labels", "eval/tasks/multi_label.py", "output.sigmoid()", "output.softmax(0)", LABELS),
    ("an end before its start", "eval/tasks/qa.py", "ends[length:]", "ends[: len(ends) - length]", BEST_SPAN),
    ("tokens of another text", "eval/tasks/batching.py", "[asked[i] for i in batch]", "asked[: len(batch)]", ASKED),
    ("a token of the context", "eval/tasks/qa.py", "range(window.context_start,", "range(1,", ASKED),
    ("LM bias left out", "model/heads.py", "(state.dtype), self.bias)", "(state.dtype))", AGREES),
    ("LM bias added twice", "model/heads.py", "(state.dtype), self.bias)", "(state.dtype), 2 * self.bias)", AGREES),
    ("ReLU for GELU", "model/encoder.py", 'activation == "relu"', 'activation != "relu"', AGREES),
    ("sign of (11)", "losses/cosine.py", "1 - F.cosine_similarity(", "F.cosine_similarity(", COSINE),
    ("direction of (10)", "losses/soft_label.py", 'direction == "student', 'direction != "student', SOFT),
    ("T squared left out", "losses/soft_label.py", "temperature**2 * divergence", "divergence", SOFT),
    ("padding in (10)", "losses/soft_label.py", "logits[real])", "logits)", SOFT),
    ("denominator of (12)", "losses/mlm.py", ", masked.sum()", ", masked.numel()", MLM),
    ("(12) over all real tokens", "losses/distillation.py", "at_least_1(masked)", "at_least_1(real)", ALL_THREE),
    ("mean of means", "train.py", "=real_tokens,\n                masked_tokens=masked_tokens,", "=None,", ACCUMULATED),
    ("fused: T squared left out", "losses/fused.py", "return temperature**2 * (self", "return (self", EQUAL),
    ("fused: T left out of the gradient", "losses/fused.py", "(temperature * soft_weight", "(soft_weight", EQUAL),
    ("fused: swapped direction", "losses/fused.py", '== "student-teacher":', '!= "student-teacher":', EQUAL),
    ("fused: shared denominator", "losses/fused.py", "weights[2] * per_masked", "weights[2] * per_real", EQUAL),
    ("fused: student's bias left out", "losses/fused.py", "student_bias - sums", "0 - sums", EQUAL),
    ("fused: teacher's bias left out", "losses/fused.py", "teacher_bias - sums", "0 - sums", EQUAL),
    ("fused: half-precision gradients", "losses/fused.py", "shape, dtype=accum_dtype", "shape, dtype=dtype", HALF),
    ("fused: scaled after rounding", "losses/fused.py", "scaled = [", "loss_scale = 1.0; scaled = [", SCALED),
    (
        "n degrees of freedom",
        "eval/reproduce/statistics.py",
        "critical_value(len(values) - 1)",
        "critical_value(len(values))",
        SEEDS,
    ),
    (
        "unpaired seeds",
        "eval/reproduce/statistics.py",
        "seed: values[seed] - others[seed]",
        "seed: values[seed] - others[max(others)]",
        SEEDS,
    ),
    ("direction of relations", "losses/relations.py", "(log_t.exp() * (", "(log_s.exp() * (", RELATIONS),
    ("one layer too late", "model/training/extra_terms.py", "teacher_states[k] ", "teacher_states[k + 1] ", EXTRA),
    ("a rate without effect", "data/masking.py", "return draw < self.rate", "return draw < CHOSEN", RATE),
    ("special tokens masked", "data/masking.py", "(ids >= ordinary.start) &", "", MASKING),
]


@pytest.fixture(scope="module")
def statuses():
    """pytest's exit status with each fault in the code, and without any."""
    result = subprocess.run([sys.executable, __file__], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["none", *(name for name, *_ in FAULTS)])
def test_a_planted_fault_is_seen(statuses, name):
    assert statuses[name] == (pytest.ExitCode.OK if name == "none" else pytest.ExitCode.TESTS_FAILED)


def run_pytest(folder: Path, tests: list[str], file: str = "train.py", before: str = "", after: str = "") -> int:
    """pytest's exit status in a copy of the repository with one change in it."""
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
    if before:
        text = (folder / file).read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{file} does not hold {before!r} once: mend this fault"
        (folder / file).write_text(text.replace(before, after), encoding="utf-8")
    ours = ("model", "losses", "data", "eval", "tests", "train", "convert_weights")
    for name in [name for name in sys.modules if name.split(".")[0] in ours]:
        del sys.modules[name]
    os.chdir(folder)
    return int(pytest.main(["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder; the copies put themselves there
    with tempfile.TemporaryDirectory() as temporary:
        every_test = sorted({test for *_, test in FAULTS})
        found = {"none": run_pytest(Path(temporary, "none"), every_test)}
        for name, file, before, after, test in FAULTS:
            found[name] = run_pytest(Path(temporary, str(len(found))), [test], file, before, after)
    print(json.dumps(found))
