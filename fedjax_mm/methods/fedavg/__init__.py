"""Multimodal federated averaging."""

from fedjax_mm.methods.fedavg.method import CLIENT_OPTIMIZERS, SERVER_OPTIMIZERS, FedAvgConfig, build

__all__ = ["CLIENT_OPTIMIZERS", "SERVER_OPTIMIZERS", "FedAvgConfig", "build"]
