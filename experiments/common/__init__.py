"""What all studies share: flags, datasets and clients, tables."""
