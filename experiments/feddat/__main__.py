"""The command `python -m experiments.feddat`; see study.py."""

from experiments.feddat import study

if __name__ == "__main__":
    study.main()
