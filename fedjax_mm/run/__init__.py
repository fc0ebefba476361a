"""The loop over rounds, what watches it, and what only the loop uses: states off the device, compilation, files."""

from fedjax_mm.run import track
from fedjax_mm.run.client_scores import own_scores
from fedjax_mm.run.loop import train
from fedjax_mm.run.rounds import Round
from fedjax_mm.run.saved import SavedRun, load
from fedjax_mm.run.scoring import Every, scores
from fedjax_mm.run.sweep_files import Sweep
from fedjax_mm.run.sweeps import sweep
from fedjax_mm.run.watch import StopRun, Watcher

__all__ = ["Every", "Round", "SavedRun", "StopRun", "Sweep", "Watcher", "load"]
__all__ += ["own_scores", "scores", "sweep", "track", "train"]
