"""What is imported when it is first used: modules of this package, and packages that an extra installs."""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType


def attach(package: str, modules: Iterable[str] | dict[str, str]) -> tuple[Callable[[str], object], Callable[[], list]]:
    """Returns `__getattr__` and `__dir__` of a package whose `modules` are imported when they are first used.

    modules: names of modules of the package, or {name: path of the module within the package}.
    """
    paths = modules if isinstance(modules, dict) else {name: name for name in modules}

    def __getattr__(name: str) -> object:
        if name not in paths:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{paths[name]}")

    return __getattr__, lambda: sorted(paths)


def require(package: str, extra: str) -> ModuleType:
    """Returns the imported package (or module of it); raises ImportError with the cure where it is not installed.

    extra: the extra of fedjax_mm that installs it.

    >>> require("no_such_package", "text")
    Traceback (most recent call last):
    ImportError: no_such_package is not installed; run: pip install 'fedjax_mm[text]'
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        root = package.partition(".")[0]
        if error.name not in (root, package):  # it is there, and something that it needs is not
            raise
        raise ImportError(f"{root} is not installed; run: pip install 'fedjax_mm[{extra}]'", name=root) from error
