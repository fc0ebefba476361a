"""CreamFL compared with its baselines and its ablations."""
