"""LightningModules: what is trained, with which losses, optimiser and metrics."""
