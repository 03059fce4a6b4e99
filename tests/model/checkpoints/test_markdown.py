"""Text from outside in Markdown and YAML: a YAML parser reads back what was written."""

import pytest
from yaml import safe_load

from model.checkpoints.markdown import code, text, yaml

VALUE = {
    "plain": "fill-mask",
    "words": [
        "no",
        "Null",
        "y",
        "1e5",
        "12",
        "1.5",
        "-",
        "a: b",
        "a #b",
        "'",
        '"',
        "\\",
        "é 😀",
        "{",
        "&a",
        "*",
        "x.y",
    ],
    "1e5": 0.5,
    "a: b": {"small": 1e-05, "large": 1e20, "int": 3, "list": [{"a": 1.0, "b": ["c"]}, {"a": 2.0}]},
}


def test_yaml_comes_back():
    back = safe_load("\n".join(yaml(VALUE)))
    assert back["a: b"].pop("small") == pytest.approx(VALUE["a: b"]["small"])
    assert back["a: b"].pop("large") == pytest.approx(1e20)
    expected = {key: value for key, value in VALUE["a: b"].items() if key not in ("small", "large")}
    assert back == {**VALUE, "a: b": expected}


@pytest.mark.parametrize("value", ["a\n---\nb", "a\u2028b", "\x00\x1b[31m", "\ud800", "\u202e"])
def test_one_line_of_printable_characters(value):
    (written,) = yaml({"a": value})
    assert written.isprintable() and isinstance(safe_load(written)["a"], str)
    assert text(value).isprintable() and code(value).isprintable()


def test_markup_has_no_effect():
    assert text("<b> a|b [c](d) `e` macro_f1 _g_") == r"\<b\> a\|b \[c\](d) \`e\` macro_f1 \_g\_"
    assert code("a`b", "``") == "`a b`, ` `" and text(None) == "unknown" and len(text("x" * 5000)) == 1000
