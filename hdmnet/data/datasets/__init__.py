"""Data sets: ids, pictures and masks of classes."""
