"""LightningDataModules of both stages."""
