"""Checks an environment in which the wheel is installed alone, without extras and away from the checkout.

Every module imports, `import fedjax_mm` stays light, nothing but fedjax_mm came with the wheel, and FedAvg trains.
"""

import importlib
import importlib.util
import json
import pathlib
import pkgutil
import subprocess
import sys
import tempfile

# Modules that may need an extra; all others must import with the core alone.
NEED_EXTRA = {"fedjax_mm.report": "report"}
HEAVY = ("sklearn", "scipy.stats", "tensorflow_datasets", "matplotlib", "flax", "orbax")
NOT_SHIPPED = ("experiments", "benchmarks", "tests")


def needed_extra(module: str) -> str | None:
    """The extra that a module may need."""
    return next((e for name, e in NEED_EXTRA.items() if module == name or module.startswith(f"{name}.")), None)


def check_imports() -> None:
    import fedjax_mm

    found = pathlib.Path(fedjax_mm.__file__)
    assert found.is_relative_to(sys.prefix), f"fedjax_mm comes from {found}, not from the wheel"
    assert (found.parent / "py.typed").is_file(), "the wheel lacks py.typed"
    assert (found.parent / "data" / "ur_fall" / "checksums.tsv").is_file(), "the wheel lacks its data files"
    skipped, failed, imported = [], [], 0

    def broken(name: str) -> None:
        (skipped if needed_extra(name) else failed).append(f"{name}: {sys.exc_info()[1]}")

    for module in pkgutil.walk_packages(fedjax_mm.__path__, "fedjax_mm.", onerror=broken):
        if module.name.endswith(".__main__"):
            continue
        try:
            importlib.import_module(module.name)
            imported += 1
        except ImportError:
            broken(module.name)
    for line in dict.fromkeys(skipped):
        print(f"needs an extra: {line}")
    assert not failed, "\n".join(["these do not import with the core alone:", *dict.fromkeys(failed)])
    assert imported > 50, f"only {imported} modules were found"
    print(f"{imported} modules import with the core alone")


def check_light() -> None:
    code = f"import sys, fedjax_mm; print(*(name for name in {HEAVY} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not loaded, f"import fedjax_mm loads {loaded}"


def check_nothing_else() -> None:
    shipped = [name for name in NOT_SHIPPED if importlib.util.find_spec(name)]
    assert not shipped, f"the wheel ships {shipped}"


def check_training() -> None:
    import numpy as np

    from fedjax_mm import FederatedData, methods, models, run

    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 60).astype(np.int32)
    arrays = {"image": rng.normal(size=(60, 5)).astype(np.float32) + label[:, None], "label": label}
    data = FederatedData.from_arrays(arrays, np.repeat(np.arange(6), 10), num_classes=3)
    encoders, head = {"image": models.mlp.encoder((8,), 8)}, models.heads.linear(3)
    method = methods.fedavg.build(methods.fedavg.FedAvgConfig(client_lr=0.1), data, encoders, head)
    with tempfile.TemporaryDirectory() as directory:
        state = run.train(method, data, rounds=2, per_round=3, test=arrays, directory=directory)
        rows = [json.loads(line) for line in (pathlib.Path(directory) / "metrics.jsonl").read_text().splitlines()]
    assert int(state.round) == 2 and len(rows) == 2, rows
    print("FedAvg trained 2 rounds:", {key: round(value, 3) for key, value in rows[-1].items() if "accuracy" in key})


if __name__ == "__main__":
    check_light()
    check_nothing_else()
    check_imports()
    check_training()
