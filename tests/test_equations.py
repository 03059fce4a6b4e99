"""Every docstring that names an equation or a section agrees with the paper."""

import ast
import re

import pytest

from tests.helpers import PAPER, REPOSITORY, needs, source_files

# Written once from the paper: number -> section, left side of the formula in plain text.
EQUATIONS = {
    1: ("2", "H_l"),
    2: ("2", "Q_{j,l}(H)"),
    3: ("2", "K_{j,l}(H)"),
    4: ("2", "V_{j,l}(H)"),
    5: ("2", "Head_{j,l}(H)"),
    6: ("2", "MultiHead_l(H)"),
    7: ("2", "Transformer_l(H)"),
    8: ("2", "FF_l(H)"),
    9: ("2", "p"),
    10: ("3.2", "SoftLabelLoss"),
    11: ("3.2", "CosineLoss"),
    12: ("3.2", "MLMLoss"),
    13: ("3.2", "Loss"),
    14: ("4.3", "P(pre = c ∈ {contradiction, implication, neutre} | hyp)"),
    15: ("4.3", "P(hyp = i ∈ C | pre)"),
}
SECTIONS = {"1", "2", "3", "3.1", "3.2", "4", "4.1", "4.2", "4.3", "4.4", "5"}
LATEX = {r"\\(?:mathbf|text|mathcal)\{(\w+)\}": r"\1", r"\\([{}])": r"\1", r"\\in\b": "∈", r"\\quad|\s+": ""}


def docstrings():
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                place = f"{path.relative_to(REPOSITORY)}:{getattr(node, 'name', 'module')}"
                yield pytest.param(text, isinstance(node, ast.Module), id=place)


def faults(docstring: str, of_module: bool = False) -> list[str]:
    """What is wrong with the equations and sections that a docstring names.

    A function or class that is an equation opens with its number, its section and its formula; a module may say
    "Equation (n): …" in words.
    """
    found = []
    for first, last in re.findall(r"[Ee]quations? \((\d+)\)(?: (?:to|and) \((\d+)\))?", docstring):
        found += [f"there is no equation ({n})" for n in (first, last or first) if int(n) not in EQUATIONS]
    for section in re.findall(r"[Ss]ections? (\d(?:\.\d)?)", docstring):
        found += [f"there is no section {section}"] * (section not in SECTIONS)
    for start in re.finditer(r"^Equation \((\d+)\)", docstring, flags=re.MULTILINE):
        section, left = EQUATIONS[int(start[1])]
        line = docstring[start.start() :].split("\n")[0]
        if of_module and line.startswith(f"Equation ({start[1]}): "):
            continue
        formula = line.removeprefix(f"Equation ({start[1]}), section {section}.  ")
        if formula == line or not (formula.startswith(f"{left} = ") or (start[1] == "14" and formula.startswith(left))):
            found.append(f"equation ({start[1]}) is of section {section} and begins {left}, not: {line}")
    return found


@pytest.mark.parametrize(
    "docstring, of_module", [d for d in docstrings() if re.search(r"[Ee]quation|[Ss]ection", d.values[0])]
)
def test_the_equations_and_sections_of_a_docstring_are_the_papers(docstring, of_module):
    assert not faults(docstring, of_module)


def test_every_equation_has_its_function():
    texts = [d.values[0] for d in docstrings()]
    opened = {int(n) for text in texts for n in re.findall(r"^Equation \((\d+)\), ", text, flags=re.MULTILINE)}
    assert opened == set(EQUATIONS)


@pytest.mark.parametrize(
    "docstring",
    [
        "Equation (7), section 2.  W_2 σ(W_1 h + b_1) + b_2, the same for every token, σ by equation (8).",
        "Equation (8), section 2.  The paper prints ReLU, max(0, x), here relu.",
        "Equation (10), section 3.1.  SoftLabelLoss = …",
        "Equation (6), section 2.  MultiHead_l(H)_j = …",
        "The loss of equation (16).",
        "As section 3.3 has it.",
    ],
)
def test_a_wrong_number_or_formula_is_found(docstring):
    assert faults(docstring)


@needs(PAPER)
@pytest.mark.parametrize("number", EQUATIONS)
def test_the_table_is_the_papers(number):
    def plain(text: str) -> str:
        for pattern, replacement in LATEX.items():
            text = re.sub(pattern, replacement, text)
        return text

    section, left = EQUATIONS[number]
    text = PAPER.read_text(encoding="utf-8")
    formula = re.search(rf"\$\$((?:(?!\$\$).)*?)(?:\\tag\{{{number}\}}|\({number}\))\s*\$\$", text, flags=re.DOTALL)
    rest = plain(formula[1]).removeprefix(plain(left))
    assert rest != plain(formula[1]) and (rest == "" or rest[0] == "=")
    heading = re.findall(r"^#+ (\d(?:\.\d)?)[ .]", text[: formula.start()], flags=re.MULTILINE)[-1]
    assert heading == section
