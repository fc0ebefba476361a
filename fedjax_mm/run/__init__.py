"""The loop over rounds, and what only the loop uses: clients' states off the device, compilation, files."""

from fedjax_mm.run.loop import train

__all__ = ["train"]
