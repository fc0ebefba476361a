"""One script per peer of experiments.throughput_peers, each run in an environment of its own (processes.py)."""
