"""Callbacks of a training: checkpoints, progress, pictures, curves."""
