"""CyCTR: Zhang et al., NeurIPS 2021."""
