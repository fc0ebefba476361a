"""The main job: every paper beside its own controls on embedded digits."""
