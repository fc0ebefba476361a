"""One paper a file: what ONE client does and what the server does."""

from fedjax_mm.methods import fedavg

METHODS = {"fedavg": fedavg}  # the property tests run over every one of these
