"""Optional packages are missed where they are used, by name and with the cure."""

import sys

import numpy as np
import pytest

from fedjax_mm import _lazy
from fedjax_mm.data import images, wordpiece
from fedjax_mm.data.vqa import pictures

GREY = np.zeros((1, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("tokenizers", lambda: wordpiece.train(["a text"], 50)),
        ("PIL", lambda: images.decode(b"", 8, "name")),
        ("PIL", lambda: pictures.fit_all(GREY, (8, 8), 4)),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(package, use, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, name, None)  # what Python takes for a package that is not installed
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is not installed; run: pip install 'fedjax_mm\[text\]'"):
        use()


def test_a_package_that_is_there_but_broken_is_not_said_to_be_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'something_it_needs'"):
        _lazy.require("broken_package", "text")


def test_a_package_that_is_there_is_returned():
    assert _lazy.require("numpy.linalg", "text") is np.linalg
