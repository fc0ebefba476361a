"""FedDAT compared with the other ways of tuning a frozen trunk."""
