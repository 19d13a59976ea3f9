"""SSP: Fan et al., ECCV 2022."""
