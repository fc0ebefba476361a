"""No function outgrows a page, no function hides three levels deep, and every module says what it is for."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "fedjax_mm"
MODULES = {str(file.relative_to(PACKAGE)): ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}
LINES = 60  # of a function, from its def to its end
LEVELS = 2  # a function of a module or of a class, and those inside it


def functions(tree):
    """Every function of a syntax tree, with its level: 1 for one that is in no other."""

    def within(node, level):
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if inside:
                yield child, level + 1
            yield from within(child, level + inside)

    return within(tree, 0)


def all_functions():
    return ((f"{name}:{f.lineno} {f.name}", f, level) for name, tree in MODULES.items() for f, level in functions(tree))


def test_levels_are_counted_through_classes_and_branches():
    source = "class A:\n def f(self):\n  if 1:\n   def g():\n    def h(): pass\ndef k(): pass"
    assert {f.name: level for f, level in functions(ast.parse(source))} == {"f": 1, "g": 2, "h": 3, "k": 1}


def test_functions_fit_on_a_page():
    lines = {where: f.end_lineno - f.lineno + 1 for where, f, _ in all_functions()}
    too_long = [f"{where} has {number} lines" for where, number in lines.items() if number > LINES]
    assert not too_long, "\n".join(too_long)


def test_functions_are_at_most_two_levels_deep():
    too_deep = [f"{where} is {level} levels deep" for where, _, level in all_functions() if level > LEVELS]
    assert not too_deep, "\n".join(too_deep)


def test_modules_have_docstrings():
    assert [name for name, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def test_a_worker_runs_whole_groups_of_tests(request, worker_id):
    """pytest-xdist says nothing where it cannot group, and what a file makes once is then made by every worker."""
    if worker_id == "master":
        pytest.skip("without -n there is one process")
    assert request.node.nodeid.endswith("@tests/test_structure.py")
