"""Question answering: SQuAD's JSON, or JSON lines, to questions."""

from collections.abc import Iterator

from ..cli import DataError
from .contents import Content
from .examples import Answer, QuestionExample, Report
from .rows import check_type, find_key, get_value, json_objects, short


def read_qa(path: str, text: Content, report: Report) -> Iterator[QuestionExample]:
    """SQuAD's JSON (FQuAD, PIAF), or JSON lines or columns with one question each."""
    unanswered = 0
    for number, (location, context, values) in enumerate(read_questions(path, text), 1):
        name, location = values.get("id"), f"{location}, question"
        name = str(name) if type(name) is int else check_type(str, name or str(number), "id", f"{location} {number}")
        location = f"{location} {short(name)}"
        question = get_value(str, values, ("question",), location)
        answers = [] if values.get("is_impossible") is True else read_answers(values, context, location, report)
        if answers:
            yield QuestionExample(name, context, question, tuple(answers))
        else:
            unanswered += 1
    if unanswered:
        report(f"{path}: skipped {unanswered} questions without an answer.")


def read_questions(path: str, text: Content) -> Iterator[tuple[str, str, dict]]:
    """-> location, context and values of each question.  Raises DataError."""
    for location, values in json_objects(path, text):
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
