"""Data sets, folds, catalogues, episodes and the DataModules that feed them to the tasks."""
