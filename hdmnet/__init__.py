"""Few-shot semantic segmentation with the Hierarchically Decoupled Matching Network (HDMNet)."""

__version__ = "0.1.0"
