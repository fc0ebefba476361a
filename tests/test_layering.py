"""Imports point one way, flax stays in models/, TensorFlow stays out, and no file outgrows its room."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "fedjax_mm").rglob("*.py"))
MAY_IMPORT = {  # room -> rooms below it
    "_lazy": set(),
    "_summary": set(),  # what states print
    "types": {"_summary"},
    "checks": {"types"},  # every room above may import it
    "trees": {"types"},
    "losses": {"types"},
    "aggregate": {"types"},
    "evaluate": {"types"},
    "models": {"types", "_lazy"},
    "data": {"types", "readers", "streamed", "_lazy"},
    "clients": {"types"},
    "split_rows": {"types", "clients"},
    "split": {"types", "clients", "split_rows"},
    "readers": set(),
    "streamed": {"types", "readers"},
    "local": {"types", "trees", "split_rows", "streamed"},
    "transforms": {"types", "trees"},
    "participation": {"types", "clients", "data"},
    "federate": {"types", "trees", "clients", "split", "split_rows", "transforms"},
    "stages": {"types", "trees", "federate"},
    "costs": {"types", "trees", "local", "federate", "transforms"},
    "uploads": {"types", "trees", "clients", "federate", "transforms", "aggregate", "data", "streamed"} | {"_lazy"},
    "methods": {"types", "trees", "losses", "aggregate", "evaluate", "models", "local", "federate", "stages", "_lazy"}
    | {"split_rows", "streamed"},
    "run": {
        "_summary",
        "types",
        "trees",
        "clients",
        "local",
        "split",
        "split_rows",
        "participation",
        "federate",
        "costs",
    }
    | {"stages", "data", "streamed", "_lazy"},
    "report": {"run", "_lazy"},
    "laws": {"types", "trees", "clients", "federate", "transforms", "costs", "data", "run"},
}


def room(file):
    return file.relative_to(ROOT / "fedjax_mm").parts[0].removesuffix(".py")


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", [f for f in FILES if room(f) != "__init__"], ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_downwards(file):
    mine = room(file)
    rooms = {name.split(".")[1] for name in imported(file) if name.startswith("fedjax_mm.")}
    assert rooms <= MAY_IMPORT[mine] | {mine, "checks"}
    packages = {name.split(".")[0] for name in imported(file)}
    assert not packages & {"tensorflow", "experiments", "benchmarks", "torch"}
    assert "flax" not in packages or mine == "models"


def test_the_allowed_imports_have_no_circle():
    done = set()
    while left := set(MAY_IMPORT) - done:
        free = {r for r in left if MAY_IMPORT[r] <= done}
        assert free, f"a circle among {left}"
        done |= free


def test_files_fit_in_one_head():
    long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 260}
    assert not long
