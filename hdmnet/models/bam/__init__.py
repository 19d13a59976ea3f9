"""BAM: Lang et al., CVPR 2022."""
