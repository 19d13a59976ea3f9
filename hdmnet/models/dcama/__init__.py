"""DCAMA: Shi et al., ECCV 2022."""
