"""HDMNet: Peng et al., CVPR 2023."""
