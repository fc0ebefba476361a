"""Stage-wise training compared with end-to-end training."""
