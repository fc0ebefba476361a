"""The command `python -m experiments.layerwise`; see study.py."""

from experiments.layerwise import study

if __name__ == "__main__":
    study.main()
