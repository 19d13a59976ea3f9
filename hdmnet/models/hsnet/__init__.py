"""HSNet: Min et al., ICCV 2021."""
