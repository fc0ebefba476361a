"""Modules and packages that are imported when they are first used."""

import importlib
from collections.abc import Callable, Iterable
from types import ModuleType


def attach(package: str, modules: Iterable[str] | dict[str, str]) -> tuple[Callable[[str], object], Callable[[], list]]:
    """`__getattr__` and `__dir__` of a package whose `modules` are imported on first use.

    modules: names of modules of the package, or {name: path of the module within the package}.
    """
    paths = modules if isinstance(modules, dict) else {name: name for name in modules}

    def __getattr__(name: str) -> object:
        if name not in paths:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{paths[name]}")

    return __getattr__, lambda: sorted(paths)


def require(package: str, extra: str) -> ModuleType:
    """The imported package; ImportError with the cure where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{package} is not installed; run: pip install 'fedjax_mm[{extra}]'") from error
