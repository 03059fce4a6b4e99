"""The imports point one way, as the READMEs' map says, and every name is imported from the file that defines it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, source_files

ROOMS = {  # room -> what it may import; a room is a file or a package of the top level, or a module
    "losses": {"losses"},
    "data": {"data", "losses"},
    "model": {"model", "losses", "data"},
    "eval": {"eval", "model", "losses", "data"},
    "train": {"eval", "model", "losses", "data"},
    "convert_weights": {"eval", "model", "losses", "data"},
}
RUNS_TRAIN = {
    "eval.tasks.table2",
    "eval.reproduce.work",
    "eval.benchmarks.throughput",
    "eval.benchmarks.distilbert_step",
}
PAPER_FILES = {
    f"model.{name}"
    for name in ("config", "embeddings", "dropout", "attention", "encoder", "heads", "student", "packed", "runs")
}
PUBLIC = {"model", "losses", "data", "data.tasks"}  # packages whose __init__ collects names


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in source_files()}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports(name: str):
    """(module, name) of everything that a module imports from this project, inside functions too."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] in ROOMS)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names if module.split(".")[0] in ROOMS else ():
                inner = f"{module}.{alias.name}"
                yield (inner, None) if inner in MODULES else (module, alias.name)


def defined_in(name: str) -> set[str]:
    names = set()
    for node in TREES[name].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            names |= {inner.id for inner in ast.walk(target) if isinstance(inner, ast.Name)} if target else set()
    return names


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_room_may(name):
    room = name.split(".")[0]
    for module, imported in imports(name):
        if module == "train":
            assert name in RUNS_TRAIN, f"{name} imports {module}: only what runs a training may"
        else:
            assert module.split(".")[0] in ROOMS[room], f"{name} imports {module}"
        if room == "data" and module.startswith("losses"):
            assert imported == "IGNORE_INDEX"
        if name == "train" and module.startswith("eval"):
            assert module == "eval.validation"
        if name == "convert_weights" and module.startswith("eval"):
            assert module == "eval.parity"


@pytest.mark.parametrize("name", sorted(PAPER_FILES))
def test_the_equations_import_nothing_but_one_another(name):
    assert {module for module, _ in imports(name)} <= PAPER_FILES


@pytest.mark.parametrize("name", MODULES)
def test_a_name_is_imported_from_the_file_that_defines_it(name):
    for module, imported in imports(name):
        if imported is not None and module not in PUBLIC:
            assert imported in defined_in(module), f"{name} imports {imported} from {module}, which only imports it"


def test_there_is_no_circle():
    graph = {name: {module for module, _ in imports(name)} & set(MODULES) for name in MODULES}
    for name in PUBLIC:  # whoever imports a package runs its __init__, which imports from its own files only
        assert all(module.startswith(f"{name}.") for module in graph.pop(name))
    for name in graph:
        graph[name] -= PUBLIC
    list(TopologicalSorter(graph).static_order())  # raises CycleError, naming the circle


def test_no_file_is_much_above_400_lines():
    assert {name: n for name, path in MODULES.items() if (n := path.read_text().count("\n")) > 420} == {}
