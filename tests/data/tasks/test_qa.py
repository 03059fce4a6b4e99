"""Question answering: every format, every error message, and the counts of a real file."""

import json
import re

import pytest

from data.tasks import Answer, QuestionExample
from tests.data.tasks.files import CONTEXT, EXPECTED, QUESTION, REAL, json_lines, real, squad
from tests.helpers import needs


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_qa_squad(examples, indent, ascii_only):
    answers = [{"text": "mois", "answer_start": 19}, {"text": "été", "answer_start": 2}]
    two = {"id": 7, "question": "", "answers": answers}
    content = json.dumps(squad(QUESTION, two, QUESTION), indent=indent, ensure_ascii=ascii_only)
    second = QuestionExample("7", CONTEXT, "", (Answer("mois", 19), Answer("été", 2)))
    assert examples("qa", content) == ([EXPECTED, second, EXPECTED], [])


def test_qa_json_lines(examples):
    value = {**QUESTION, "context": CONTEXT}
    hub = {**value, "answers": {"text": ["trois"], "answer_start": [13]}}
    unnamed = {key: hub[key] for key in ("context", "question", "answers")}
    found = examples("qa", json_lines(value, hub, unnamed, {**value, "id": None}, {**value, "id": ""}))
    assert found == ([EXPECTED._replace(id=name) for name in ("q1", "q1", "3", "4", "5")], [])


def test_questions_without_an_answer(examples):
    """plausible_answers are no answers, and is_impossible has the last word."""
    none = [
        {"id": "i", "question": "?", "is_impossible": True, "answers": [], "plausible_answers": QUESTION["answers"]},
        {"id": "j", "question": "?", "is_impossible": True, "answers": QUESTION["answers"]},
        {"id": "k", "question": "?", "answers": []},
        {"id": "l", "question": "?", "answers": {"text": [], "answer_start": []}},
        {"id": "m", "question": "?", "answers": [{"text": " ", "answer_start": 5}]},
        {"id": "n", "question": "?", "is_impossible": True},
        {"id": "o", "question": "?", "is_impossible": 1, "answers": None},
    ]
    found, (report,) = examples("qa", json.dumps(squad(*none, {**QUESTION, "is_impossible": False})))
    assert found == [*(QuestionExample(value["id"], CONTEXT, "?", ()) for value in none), EXPECTED]
    assert report.endswith("/f: 7 of 8 questions have no answer.")
    lines = [{**value, "context": CONTEXT} for value in none]
    assert examples("qa", json_lines(*lines))[0] == found[:-1]


def test_a_question_that_lacks_the_answer_it_is_said_to_have(examples, refused):
    lacking = {"id": "i", "question": "?", "is_impossible": False, "answers": []}
    found, (report,) = examples("qa", json.dumps(squad(lacking, QUESTION)))
    assert found == [EXPECTED] and "/f: skipped 1 questions without an answer whose is_impossible is false" in report
    refused("qa", json.dumps(squad(lacking)), " contains no qa example")


def test_a_file_whose_answers_were_left_out(refused, examples):
    """As those of test sets are. A single is_impossible shows that the rest is meant."""
    without = {"id": "i", "question": "?", "answers": []}
    refused("qa", json.dumps(squad(without, without)), " contains no qa example with an answer", "add the answers")
    found, _ = examples("qa", json.dumps(squad(without, {**without, "is_impossible": True})))
    assert [example.answers for example in found] == [(), ()]


STARTS = [12, 14, -11, 10**6, 10**4000, True, 13.0, "13", None, [13]]
WRONG_OFFSETS = [{"text": "trois", "answer_start": start} for start in STARTS]
WRONG_OFFSETS += [{"text": "'été", "answer_start": True}, {"text": "trois"}]  # True is not the offset 1


@pytest.mark.parametrize("answer", WRONG_OFFSETS)
def test_an_answer_that_is_not_at_its_offset_is_used_for_scoring_only(examples, answer):
    answers = [answer, *QUESTION["answers"]]
    found, (report,) = examples("qa", json.dumps(squad({**QUESTION, "answers": answers})))
    assert found == [EXPECTED._replace(answers=(Answer(answer["text"], None), Answer("trois", 13)))]
    assert len(report) < 400 and f"/f, question q1: the answer «{answer['text']}» is not at" in report
    assert answer.get("answer_start") != 12 or "answer_start 12, where the context has « troi»" in report


def test_qa_errors(refused):
    line = {**QUESTION, "context": CONTEXT}
    for bad, words in (
        ({**line, "answers": 3}, ("question q1", "answers must be a list, not int")),
        ({**line, "answers": ["trois"]}, ("question q1", "an answer must be an object")),
        ({**line, "answers": [{"answer_start": 13}]}, ("question q1", "no text", "It has answer_start")),
        ({**line, "answers": [{"text": 3, "answer_start": 13}]}, ("question q1", "a string, not int")),
        ({**line, "answers": {"text": ["trois"], "answer_start": []}}, ("question q1", "1 answers and 0 offsets")),
        ({**line, "answers": {"text": ["trois"]}}, ("question q1", "no answer_start")),
        ({**line, "is_impossible": "false"}, ("question q1", "is_impossible must be true or false, not 'false'")),
        ({**line, "is_impossible": 2}, ("question q1", "is_impossible must be true or false, not 2")),
        ({**line, "is_impossible": 0.0}, ("question q1", "is_impossible must be true or false, not 0.0")),
        ({**line, "question": None}, ("question q1", "question must be a string")),
        ({**line, "context": 3}, ("context must be a string",)),
        ({**line, "id": [3]}, ("question 2: id must be a string",)),
        ({"context": CONTEXT, "id": "q1", "answers": []}, ("question q1 has no question", "context, id, answers")),
        ({"question": "?", "id": "q1", "answers": []}, ("no context",)),
        ({"context": CONTEXT, "question": "?", "id": "q1"}, ("question q1 has no answers",)),
    ):
        refused("qa", json_lines(line, bad), " line 2", *words)
    refused("qa", json.dumps(squad(QUESTION, {"id": "q2", "question": "?"})), ", question q2", "no answers")
    refused("qa", json.dumps(squad(QUESTION, {"question": "?"})), ", question 2", "no answers")
    refused("qa", json.dumps(squad(QUESTION, "?")), ", article 1, paragraph 1: question 2", "an object")
    refused("qa", json.dumps(squad(QUESTION)).replace('"qas"', '"questions"'), ", article 1, paragraph 1 has no qas")
    refused("qa", json.dumps(squad(QUESTION)).replace('"context"', '"c"'), ", article 1, paragraph 1 has no context")
    refused("qa", json.dumps(squad(QUESTION)).replace('"paragraphs"', '"p"'), ", article 1 has no paragraphs")
    refused("qa", json.dumps({"data": {}}), ": data must be a list, not dict")
    refused("qa", json.dumps({"data": []}), " contains no qa example")
    refused("qa", json.dumps(squad({**QUESTION, "answers": []})), " contains no qa example")


@needs(REAL / "qa/piaf-v1.0.json")
def test_real_qa():
    found, reports = real("qa", "qa/piaf-v1.0.json")
    assert len(found) == 3835 and len({question.context for question in found}) <= 761
    wrong = [question.id for question in found for answer in question.answers if answer.start is None]
    assert len(wrong) == len(reports) == 2
    assert wrong == [re.search(r"question (\w+):", report)[1] for report in reports]
    for question in found:
        for text, start in question.answers:
            assert start is None or question.context[start : start + len(text)] == text
