"""Warns of figures that mean less than they seem to: shared examples, and models that always give one answer."""

from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

from data.cli import warn
from data.tasks import Example, QuestionExample
from data.tasks.tags import OUTSIDE

from .multi_label import LabelsPrediction
from .ner import EntityPrediction, TagPrediction
from .qa import AnswerSpan, QaTask
from .regression import ValuePrediction
from .sequences import LabelPrediction, SequenceTask

SHARED = 0.1  # fraction of a part whose texts may be in another part before it is said; real data sets repeat some
LEAST_ANSWERS = 10  # predictions of which it is said that they are all the same


def warn_of_shared_examples(data: Mapping[str, Sequence[Example]]) -> None:
    """Of two parts (train, dev, test), whatever files they come from.  Labels are not compared: the text is known."""
    texts = {part: [text_of(example) for example in examples] for part, examples in data.items()}
    for first, second in combinations(texts, 2):
        known = set(texts[first])
        shared = sum(text in known for text in texts[second])
        if shared > SHARED * len(texts[second]):
            count = "all" if shared == len(texts[second]) else f"{shared:,} of {len(texts[second]):,}"
            same = " Is it one file?" if texts[first] == texts[second] else ""
            found = f"{count} examples of --{second} are also in --{first}.{same}"
            warn(f"{found} The figures on --{second} are too good for texts that the model has not seen.")


def text_of(example: Example) -> Hashable:
    """An example without its label."""
    return example[1:3] if isinstance(example, QuestionExample) else example[:-1]


class Answers:
    """What a model has answered so far, in as few words as a warning needs."""

    def __init__(self):
        self.count, self.different = 0, set()

    def add(self, task, predictions: Sequence) -> None:
        self.count += len(predictions)
        for prediction in predictions:
            if len(self.different) < 2:
                self.different.add(answer_of(task, prediction))

    def warn_if_one(self, source: str) -> None:
        """source: of the texts, for the message."""
        if self.count >= LEAST_ANSWERS and len(self.different) == 1 and (answer := next(iter(self.different))):
            found = f"all {self.count:,} predictions on {source} are the same: {answer}."
            warn(f"{found} The model may have learnt nothing, or the model, the labels or the input may be wrong.")


def answer_of(task: SequenceTask | QaTask, prediction) -> str | None:
    """A prediction in a few words; None for entities, whatever they are."""
    match prediction:
        case LabelPrediction():
            return prediction.label
        case LabelsPrediction():
            return ", ".join(prediction.labels) or "no label"
        case ValuePrediction():
            return ", ".join(f"{value:.4f}" for value in prediction.values.tolist())
        case AnswerSpan():
            return "no answer" if task.says_none(prediction) else repr(prediction.answer[:100])
        case TagPrediction():
            return None if {*prediction.tags} - {OUTSIDE} else "no entity"
        case EntityPrediction():
            return None if prediction.entities else "no entity"


def share_equal(task: SequenceTask | QaTask, predictions: Sequence, others: Sequence) -> float | None:
    """The share of labels that are the same in two lists of predictions on the same examples; None for a regression.

    A label is a text's, a word's for tags, all entities of a running text, or the answer to a question.
    """
    if any(isinstance(prediction, ValuePrediction) for prediction in predictions):
        return None
    pairs = zip(predictions, others, strict=True)
    equal = [one == other for pair in pairs for one, other in zip(*(labels_in(task, each) for each in pair))]
    return sum(equal) / len(equal)


def labels_in(task: SequenceTask | QaTask, prediction) -> Sequence[Hashable]:
    match prediction:
        case LabelPrediction():
            return [prediction.label]
        case LabelsPrediction():
            return [prediction.labels]
        case AnswerSpan():
            return [None if task.says_none(prediction) else prediction.answer]
        case TagPrediction():
            return prediction.tags
        case EntityPrediction():
            return [tuple((entity.type, entity.start, entity.end) for entity in prediction.entities)]


def warn_of_one_answer(task: SequenceTask | QaTask, predictions: Sequence, source: str) -> None:
    """source: of the texts, for the message."""
    answers = Answers()
    answers.add(task, predictions)
    answers.warn_if_one(source)
