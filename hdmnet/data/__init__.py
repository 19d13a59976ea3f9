"""Data sets, folds, catalogs, episodes and the DataModules that feed them to the tasks."""
