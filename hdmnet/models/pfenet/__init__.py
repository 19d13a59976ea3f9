"""PFENet: Tian et al., TPAMI 2020."""
