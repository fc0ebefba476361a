"""The examples in the docstrings give what they say."""

import doctest
import importlib
import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
OPTIONAL = {"PIL", "array_record", "matplotlib", "rich", "safetensors", "tensorboardX", "tensorflow_datasets"}
OPTIONAL |= {"tokenizers", "tyro"}


def modules():
    """The names of the modules that have an example; those that build a dataset have none."""
    for file in sorted((ROOT / "fedjax_mm").rglob("*.py")):
        if ">>> " in file.read_text() and not file.stem.endswith("_dataset_builder"):
            yield ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules()))
def test_examples_give_what_they_say(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {error.name}")
    failed, tried = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert tried and not failed
