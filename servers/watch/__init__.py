"""Watching a training script that stays where it is; see `session` and `trainer`."""
