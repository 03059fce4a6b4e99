"""Tags to pieces and back; the decisions on words and text; metrics against seqeval and scikit-learn."""

import json
import time
from itertools import chain

import numpy
import pytest
import torch

pytest.importorskip("seqeval")  # on a machine that is lent for the tests of a GPU
import seqeval.metrics
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import f1_score, precision_recall_fscore_support

from data import DataError, Tokenizer
from data.tasks import WordsExample, labels_of, read_task
from data.tasks.tags import entity_spans
from eval.results import format_metrics
from eval.tasks.batching import TaskSettings
from eval.tasks.bootstrap import precision_recall_f1
from eval.tasks.ner import NerTask, ner_report, span_counts, word_spans
from losses import IGNORE_INDEX
from tests.eval.tasks.shared import TOKENIZER, asked, checked_metrics, confident_outputs, ignore
from tests.helpers import REAL_TOKENIZER, SHARED, needs

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")  # also seqeval's
WIKINEURAL = SHARED / "data/ner/wikineural.fr.val.conllu"
TAGS = ("O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-LOC", "B-MISC", "I-MISC")
TYPES = ["LOC", "MISC", "PER"]


# ---- features and predictions ----------------------------------------------------------------------------------


def test_targets_of_pieces():
    words, tags = ("Jean", "Landivisiau", "Landerneau", "Landunvez"), ("B-PER", "O", "B-LOC", "I-SUB-LOC")
    example = WordsExample(words, tags)
    labels = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER", "I-SUB-LOC")
    task = NerTask(TaskSettings(TOKENIZER, 64), labels)
    (feature,) = task.encode([example], ignore)
    pieces = task.pieces(example)
    assert feature.ids == [5, *pieces.ids, 6] and feature.target[0] == feature.target[-1] == IGNORE_INDEX
    found = [labels[i] for i in feature.target[1:-1]]
    assert all(pieces.word_ids.count(word) > 1 for word in (1, 2, 3))  # so that every kind of tag has a second piece
    for i, (word, tag) in enumerate(zip(pieces.word_ids, found)):
        first = i == 0 or pieces.word_ids[i - 1] != word
        assert tag == (tags[word] if first else {"B-PER": "I-PER", "B-LOC": "I-LOC"}.get(tags[word], tags[word]))
    only_inside = NerTask(TaskSettings(TOKENIZER, 64), ("O", "I-LOC"))  # no B-, as the released model; and no PER
    (feature,) = only_inside.encode([example], ignore)
    assert [i for i, word in zip(feature.target[1:-1], pieces.word_ids) if word == 2] == [1] * pieces.word_ids.count(2)
    assert {i for i, word in zip(feature.target[1:-1], pieces.word_ids) if word == 0} == {IGNORE_INDEX}


SCHEMES = {  # a model's labels -> for the entities of LOC in (a, b) c (d, e, f), each of two pieces: the targets
    "O B-LOC I-LOC": "B I I I O O B I I I I I",
    "O I-LOC": "I I I I O O I I I I I I",
    "O LOC": "LOC LOC LOC LOC O O LOC LOC LOC LOC LOC LOC",
    "B-O B-LOC": "B B B B O O B B B B B B",
    "O B-LOC I-LOC E-LOC S-LOC": "B I E I O O B I I I E I",
    "O B-LOC I-LOC L-LOC U-LOC": "B I L I O O B I I I L I",
    "O B-PER I-PER": "- - - - O O - - - - - -",
}


@pytest.mark.parametrize(("labels", "expected"), SCHEMES.items())
def test_targets_in_the_scheme_of_the_model(labels, expected):
    task = NerTask(TaskSettings(TOKENIZER, 64), labels.split())
    tags = ("B-LOC", "I-LOC", "O", "B-LOC", "I-LOC", "I-LOC")
    found = task.targets(tags, [word for word in range(6) for _ in range(2)])
    names = ["-" if i == IGNORE_INDEX else task.labels[i].removesuffix("-LOC") for i in found]
    assert names == ["O" if name == "B-O" else name for name in expected.split()] or "B-O" in labels
    assert [name.replace("B-O", "O") for name in names] == expected.split()


def test_targets_of_single_words():
    for labels, expected in (("O S-LOC I-LOC", [1, 2]), ("U-LOC O", [0, 0]), ("O B-LOC", [1, 1])):
        assert NerTask(TaskSettings(TOKENIZER, 64), labels.split()).targets(["B-LOC"], [0, 0]) == expected


@pytest.mark.parametrize("labels", ["O B_PER", "LABEL_0 LABEL_1", "O PER B-LOC", "NOUN VERB", "O B-PER E-PER L-PER"])
def test_labels_of_no_scheme_are_refused(labels):
    with pytest.raises(DataError, match="^The model has the tag ") as error:
        NerTask(TaskSettings(TOKENIZER, 64), labels.split())
    assert all(label in str(error.value) for label in labels.split())


def probabilities(labels: str, *rows: str) -> torch.Tensor:
    """A row for each piece, of probabilities in tenths: "B-PER 6, O 4"."""
    names = labels.split()
    scores = torch.zeros(len(rows), len(names))
    for row, text in zip(scores, rows):
        for pair in text.split(", "):
            name, tenths = pair.split()
            row[names.index(name)] = float(tenths) / 10
    return scores


@pytest.mark.parametrize(
    ("labels", "rows", "expected"),
    [
        ("O B-PER I-PER", ["B-PER 9, O 1", "I-PER 9, O 1"], ("PER", 0.9, True)),
        ("O B-PER I-PER", ["I-PER 9, O 1", "B-PER 9, O 1"], ("PER", 0.9, False)),  # the first piece says how it begins
        ("O B-PER I-PER", ["B-PER 6, O 4", "O 9, I-PER 1"], ("O", 0.65, False)),
        ("O B-PER I-PER", ["B-PER 3, I-PER 3, O 4", "I-PER 6, O 4"], ("PER", 0.6, False)),  # B- and I- are added
        ("O B-PER B-LOC I-LOC", ["B-PER 6, O 4", "B-LOC 6, O 4", "I-LOC 6, O 4"], ("LOC", 0.4, False)),
        ("O PER", ["PER 9, O 1"], ("PER", 0.9, False)),
        ("B-O I-O B-PER", ["B-O 3, I-O 3, B-PER 4"], ("O", 0.6, True)),
        ("O E-PER S-PER", ["S-PER 5, E-PER 4, O 1"], ("PER", 0.9, True)),
        ("O L-PER I-PER U-PER", ["U-PER 3, L-PER 4, I-PER 2, O 1"], ("PER", 0.9, False)),
    ],
)
def test_one_decision_from_the_mean_over_the_pieces_of_a_word(labels, rows, expected):
    task = NerTask(TaskSettings(TOKENIZER, 64), labels.split())
    scores = torch.cat([torch.ones(1, len(task.labels)) / len(task.labels), probabilities(labels, *rows)])
    _, (kind, score, begins) = task.decide(scores, [range(1), range(1, len(scores))])
    assert (kind, begins or kind == "O") == (expected[0], expected[2] or kind == "O")
    assert score == pytest.approx(expected[1], abs=1e-6) or kind == "LOC"


def test_words_without_pieces_and_words_that_share_one():
    task = NerTask(TaskSettings(TOKENIZER, 64), ("O", "B-LOC", "I-LOC"))
    scores = torch.tensor([[0.1, 0.8, 0.1]] * 3)
    decisions = task.decide(scores, [range(0, 1), range(0, 1), range(0, 2), range(2, 2), range(2, 3)])
    expected = [("LOC", True), ("LOC", False), ("LOC", False), ("O", False), ("LOC", True)]
    assert [(decision.type, decision.begins) for decision in decisions] == expected
    assert task.decide(scores[:0], []) == [] and task.decide(scores[:0], [range(0, 0)])[0].type == "O"


def test_the_tag_of_a_word():
    example = WordsExample(("Landerneau", "Brest", "Roc"), ("B-LOC", "O", "B-LOC"))
    task = NerTask(TaskSettings(TOKENIZER, 64), ("O", "B-LOC", "I-LOC"))
    (feature,) = task.encode([example], ignore)
    first, second, third = (feature.pieces.word_ids.index(word) for word in range(3))
    assert second > 2
    output = torch.zeros(len(feature.ids), 3)
    output[0, 2] = output[-1, 2] = 9  # <s> and </s> belong to no word
    output[1 + first, 1] = 5
    output[2 + first : 1 + second, 2] = 5
    output[1 + second : 1 + third, 0] = 5
    output[1 + third : -1, 2] = 5  # I- after O begins an entity
    (prediction,) = task.decode(asked([output], [feature]), [feature], [example])
    assert prediction.tags == ("B-LOC", "O", "B-LOC") and prediction.pieces == task.pieces(example)
    assert torch.allclose(prediction.scores, output[1:-1].softmax(dim=-1))
    assert task.metrics([prediction], [example], 0)["entity_f1"]["value"] == 1
    output[2 + first : 1 + second] = torch.tensor([1.0, 0.0, 0.5])  # the word is still LOC, its other pieces are not
    (prediction,) = task.decode(asked([output], [feature]), [feature], [example])
    assert prediction.tags[0] == "B-LOC"
    metrics = task.metrics([prediction], [example], 0)
    assert metrics["entity_f1"]["value"] == 1 > metrics["subword_f1"]["value"]


@needs(REAL_TOKENIZER, WIKINEURAL)
@pytest.mark.parametrize("max_length", [512, 20])
def test_confident_outputs_give_every_tag_of_real_data(max_length):
    examples = read_task("ner", [WIKINEURAL], ignore)
    assert len(examples) == 12_600
    labels = labels_of(examples)
    examples = examples if max_length == 512 else examples[::4]  # for time
    task = NerTask(TaskSettings(Tokenizer(REAL_TOKENIZER), max_length), labels)
    features = task.encode(examples, ignore)
    assert max(len(feature.ids) for feature in features) <= max_length
    assert (len(features) > 1.5 * len(examples)) == (max_length == 20)
    predictions = task.decode(confident_outputs(features, len(labels)), features, examples)
    tags, gold = [prediction.tags for prediction in predictions], [example.tags for example in examples]
    assert tags == gold
    if max_length == 512:
        assert seqeval.metrics.f1_score(list(map(list, gold)), list(map(list, tags))) == 1


# ---- entities --------------------------------------------------------------------------------------------------


def random_tags(random: numpy.random.Generator, sentences: int, noise: float = 0.3):
    """-> gold and predicted tags of sentences of 0 to 14 words, any tag after any other"""
    gold = [[str(tag) for tag in random.choice(TAGS, size=random.integers(15))] for _ in range(sentences)]
    predicted = [[str(random.choice(TAGS)) if random.random() < noise else tag for tag in tags] for tags in gold]
    return gold, predicted


def types_of(sentences):
    return [[tag[2:] or "O" for tag in tags] for tags in sentences]


def flat(sentences):
    return list(chain.from_iterable(sentences))


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("B-PER I-PER O", [("PER", 0, 2)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # WikiNER has no B-
        ("I-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("B-PER I-LOC I-LOC B-LOC", [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)]),
        ("", []),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entity_spans(tags.split()) == expected


def test_entities_equal_seqevals():
    random = numpy.random.default_rng(0)
    for tags in random_tags(random, 3000)[0]:
        assert entity_spans(tags) == [(kind, first, last + 1) for kind, first, last in get_entities(tags)]


def test_entity_metrics_equal_seqevals():
    random = numpy.random.default_rng(0)
    empty = 0
    for _ in range(300):
        gold, predicted = random_tags(random, random.integers(1, 5), random.choice([0, 0.3, 1]))
        if not any(gold):
            continue
        spans = [entity_spans(tags) for tags in gold], [entity_spans(tags) for tags in predicted]
        types = sorted({kind for kind, _, _ in flat(flat(spans))})
        counts = span_counts(*spans, types).sum(axis=0)
        micro = precision_recall_f1(counts.sum(axis=0))
        for name, oracle in (("precision", "precision_score"), ("recall", "recall_score"), ("f1", "f1_score")):
            expected = getattr(seqeval.metrics, oracle)(gold, predicted, zero_division=0)
            assert micro[name] == pytest.approx(expected, abs=1e-12)
        if not types:
            empty += 1
            continue
        report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
        for i, kind in enumerate(types):
            expected = [report[kind][name] for name in ("precision", "recall", "f1-score")]
            assert list(precision_recall_f1(counts[i]).values()) == pytest.approx(expected, abs=1e-12)
            assert counts[i, 2] == report[kind]["support"]
    assert empty  # sentences without entities occurred


def test_overlap_equals_scikit_learns_micro_f1_over_words_without_o():
    random = numpy.random.default_rng(0)
    for _ in range(300):
        gold, predicted = random_tags(random, random.integers(4, 9), random.choice([0, 0.3, 1]))
        counts = span_counts(*([word_spans(tags) for tags in side] for side in (gold, predicted)), TYPES)
        words = flat(types_of(gold)), flat(types_of(predicted))
        *expected, _ = precision_recall_fscore_support(*words, labels=TYPES, average="micro", zero_division=0)
        assert list(precision_recall_f1(counts.sum(axis=(0, 1))).values()) == pytest.approx(expected, abs=1e-12)


def test_the_report():
    gold, predicted = random_tags(numpy.random.default_rng(0), 200)
    sub_gold, sub_predicted = ([2 * kinds for kinds in types_of(tags)] for tags in (gold, predicted))
    report = ner_report(gold, predicted, sub_gold, sub_predicted)
    assert report == json.loads(json.dumps(report)) and report["count"] == 200
    names = [f"{prefix}_{n}" for prefix in ("entity", "overlap") for n in ("precision", "recall", "f1", "by_type")]
    assert report.keys() == {*names, "subword_f1", "subword_f1_without_o", "subword_by_type", "count"}
    assert len(list(checked_metrics(report))) == 3 * (1 + 3) * 2 + 2 + 3 * 4
    assert report["entity_f1"]["value"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted))
    assert list(report["entity_by_type"]) == list(report["overlap_by_type"]) == TYPES
    assert list(report["subword_by_type"]) == ["O", *TYPES]
    theirs = seqeval.metrics.classification_report(gold, predicted, output_dict=True)["PER"]
    found = report["entity_by_type"]["PER"]
    assert (found["recall"]["value"], found["support"]) == pytest.approx((theirs["recall"], theirs["support"]))
    words = flat(types_of(gold)), flat(types_of(predicted))
    assert report["overlap_f1"]["value"] == pytest.approx(f1_score(*words, labels=TYPES, average="micro"))
    per = report["overlap_by_type"]["PER"]["f1"]["value"]
    assert per == pytest.approx(f1_score(*words, labels=["PER"], average="macro"))
    # every word counts twice, so the ratios over sub-words are those over words
    assert report["subword_f1"]["value"] == pytest.approx(f1_score(*words, average="weighted"))
    without = f1_score(*words, labels=TYPES, average="weighted")
    assert report["subword_f1_without_o"]["value"] == pytest.approx(without)
    assert report["subword_by_type"]["O"]["support"] == 2 * words[0].count("O")
    other = ner_report(gold, predicted, sub_gold, sub_predicted, seed=1)
    assert all(report[name] != other[name] for name in ("entity_f1", "overlap_f1", "subword_f1"))


def test_sentences_are_resampled():
    gold, predicted = random_tags(numpy.random.default_rng(0), 12)
    report = ner_report(gold, predicted, types_of(gold), types_of(predicted), seed=5)
    draws = numpy.random.default_rng(5)
    indices = [draws.integers(12, size=12) for _ in range(1000)]
    resampled = [seqeval.metrics.f1_score([gold[i] for i in drawn], [predicted[i] for i in drawn]) for drawn in indices]
    low, high = numpy.percentile(resampled, [2.5, 97.5])
    assert (report["entity_f1"]["low"], report["entity_f1"]["high"]) == pytest.approx((low, high))


def test_perfect_predictions_score_1_with_both_ends_of_the_interval():
    tags, _ = random_tags(numpy.random.default_rng(0), 40)
    types = types_of(tags)
    metrics = list(checked_metrics(ner_report(tags, tags, types, types)))
    assert len(metrics) > 10
    assert all(metric == pytest.approx({"value": 1, "low": 1, "high": 1}) for metric in metrics)


def test_a_single_sentence_has_no_interval():
    tags = ["B-PER", "O"]
    report = ner_report([tags], [tags], [["PER", "O"]], [["O", "O"]])
    assert report["entity_f1"] == {"value": 1, "low": None, "high": None}
    assert report["subword_by_type"]["PER"]["recall"] == {"value": 0, "low": None, "high": None}
    assert "entity_f1                1.0000\n" in format_metrics(report)


def test_without_entities_the_metrics_are_0():
    report = ner_report([["O"], []], [["O"], []], [["O"], []], [["O"], []])
    assert report["entity_f1"] == report["overlap_recall"] == {"value": 0, "low": 0, "high": 0}
    assert report["subword_f1_without_o"]["value"] == 0 and report["subword_f1"]["value"] == 1
    assert report["entity_by_type"] == {}


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(predicted=[["O"]]), "differ in number: 2 and 1 sentences"),
        (dict(predicted=[["O", "O"], []]), "2 and 1 words in sentence 2|0 words in sentence 2"),
        (dict(subword_predicted=[["O"], ["O"]]), "2 and 1 sub-words in sentence 1"),
        (dict(subword_gold=[["O"]], subword_predicted=[["O"]]), "2 sentences of words, but 1 of sub-words"),
        (dict(gold=[], predicted=[]), "nothing to measure: no sentence has words"),
        (dict(subword_gold=[[], []], subword_predicted=[[], []]), "nothing to measure: .* sub-words"),
    ],
)
def test_invalid_reports(change, message):
    valid = dict(gold=[["O", "B-PER"], ["O"]], predicted=[["O", "O"], ["O"]])
    valid |= dict(subword_gold=[["O", "PER"], ["O"]], subword_predicted=[["O", "O"], ["O"]])
    ner_report(**valid)
    with pytest.raises(DataError, match=message):
        ner_report(**(valid | change))


def test_a_report_of_5000_sentences_is_fast():
    gold, predicted = random_tags(numpy.random.default_rng(0), 5000)
    types = types_of(gold), types_of(predicted)
    start = time.process_time()
    ner_report(gold, predicted, *types)
    assert time.process_time() - start < 4  # about 1 when measured: room for a slow machine
