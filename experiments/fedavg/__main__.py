"""The command `python -m experiments.fedavg`; see study.py."""

from experiments.common import tables
from experiments.fedavg import study

if __name__ == "__main__":
    study.main(tables.settings_from(study.PRESETS, study.__doc__))
