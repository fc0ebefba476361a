"""Experiment scripts: `python -m experiments.compare`, one script per paper beside it."""
