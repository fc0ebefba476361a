"""FedMEKT compared with its baselines."""
