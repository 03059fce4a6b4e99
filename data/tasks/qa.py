"""Question answering: SQuAD's JSON, or JSON lines, to questions."""

from collections.abc import Iterator

from ..cli import DataError
from .contents import Content
from .examples import Answer, QuestionExample, Report
from .parts import part_of_row
from .rows import check_type, find_key, get_value, in_french, json_objects, short


def read_qa(path: str, content: Content, report: Report) -> Iterator[tuple[str | None, QuestionExample]]:
    """SQuAD's JSON (FQuAD, PIAF, SQuAD 2.0), or JSON lines or columns with one question each.

    -> the part or None, example of each question

    A question has no answer if is_impossible says so, whatever else it has (plausible_answers, say), or if its answers
    are empty and nothing says that it has one. Raises DataError if that holds for all of a file without is_impossible:
    its answers were left out, as those of a test set are.
    """
    number = answered = marked = contradictory = 0
    for number, (location, context, values) in enumerate(read_questions(path, content, report), 1):
        name, location = values.get("id"), f"{location}, question"
        name = str(name) if type(name) is int else check_type(str, name or str(number), "id", f"{location} {number}")
        location = f"{location} {short(name)}"
        question = get_value(str, values, ("question",), location)
        impossible = is_impossible(values, location)
        answers = [] if impossible else read_answers(values, context, location, report)
        if not answers and impossible is False:
            contradictory += 1
            continue
        answered, marked = answered + bool(answers), marked + bool(impossible)
        yield part_of_row(values, location), QuestionExample(name, context, question, tuple(answers))
    if contradictory:
        report(f"{path}: skipped {contradictory:,} questions without an answer whose is_impossible is false.")
    if number > contradictory and not answered and not marked:
        raise DataError(f"{path} contains no qa example with an answer, and none says is_impossible: add the answers.")
    if unanswered := number - contradictory - answered:
        report(f"{path}: {unanswered:,} of {number:,} questions have no answer.")


def is_impossible(values: dict, location: str) -> bool | None:
    """Whether a question is said to have no answer; None if nothing is said.  Raises DataError."""
    value = values.get("is_impossible")
    if value is not None and (type(value) not in (bool, int) or value not in (0, 1)):
        raise DataError(f"{location}: is_impossible must be true or false, not {short(repr(value))}.")
    return None if value is None else bool(value)


def read_questions(path: str, content: Content, report: Report) -> Iterator[tuple[str, str, dict]]:
    """-> location, context and values of each question.  Raises DataError."""
    for location, values in in_french(json_objects(path, content), path, report):
        if "data" not in values:
            yield location, get_value(str, values, ("context",), location), values
            continue
        for article_location, article in objects_in(values, "data", path, "article"):
            for paragraph_location, paragraph in objects_in(article, "paragraphs", article_location, "paragraph"):
                context = get_value(str, paragraph, ("context",), paragraph_location)
                for _, question in objects_in(paragraph, "qas", paragraph_location, "question"):
                    yield path, context, question


def objects_in(values: dict, key: str, location: str, name: str) -> Iterator[tuple[str, dict]]:
    """The objects of the list under a key -> location and values of each.  Raises DataError."""
    for number, value in enumerate(get_value(list, values, (key,), location), 1):
        yield f"{location}, {name} {number}", check_type(dict, value, f"{name} {number}", location)


def read_answers(values: dict, context: str, location: str, report: Report) -> list[Answer]:
    """From a list of objects, or an object of two lists; empty answers are skipped.  Raises DataError."""
    found = values.get("answers")
    if isinstance(found, dict):
        texts, starts = (get_value(list, found, (key,), location) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise DataError(f"{location} has {len(texts)} answers and {len(starts)} offsets; one per answer is needed.")
    else:
        found = get_value(list, values, ("answers",), location)
        objects = [check_type(dict, answer, "an answer", location) for answer in found]
        texts = [answer[find_key(("text",), answer, location)] for answer in objects]
        starts = [answer.get("answer_start") for answer in objects]
    answers = []
    for text, start in zip(texts, starts):
        text = check_type(str, text, "an answer", location)
        if not text.strip():
            continue
        if type(start) is not int or start < 0 or not context.startswith(text, start):
            actual = short(context[start : start + len(text)]) if type(start) is int and start >= 0 else ""
            offset = short(str(start)) if isinstance(start, int | float) else type(start).__name__
            reason = f"the answer «{short(text)}» is not at answer_start {offset}, where the context has «{actual}»"
            report(f"{location}: {reason}. It is used for scoring only.")
            start = None
        answers.append(Answer(text, start))
    return answers
