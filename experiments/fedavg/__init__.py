"""Multimodal FedAvg compared with its controls."""
