"""Datasets, partitions, and the door for anyone's own arrays."""

from fedjax_mm.data.dataset import Dataset
from fedjax_mm.data.federated import FederatedData, pooled

__all__ = ["Dataset", "FederatedData", "pooled"]
