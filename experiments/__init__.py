"""Studies: `python -m experiments.compare`, and a room a paper, e.g. `python -m experiments.creamfl compare`."""
