"""One script per peer of benchmarks.peers.comparison, each run in an environment of its own (processes.py)."""
