"""How fast a round is; `python -m benchmarks` measures it."""
