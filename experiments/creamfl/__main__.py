"""The command `python -m experiments.creamfl`; see study.py."""

from experiments.creamfl import study

if __name__ == "__main__":
    study.main()
