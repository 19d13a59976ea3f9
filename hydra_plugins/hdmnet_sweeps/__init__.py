"""Where Hydra looks for plugins: it takes launchers and sweepers only from a package `hydra_plugins`."""

from __future__ import annotations

from hdmnet.optuna_sweeper import OptunaSweeper as _OptunaSweeper
from hdmnet.slurm import SlurmSweepLauncher as _SlurmSweepLauncher
from hdmnet.sweeps import LocalSweepLauncher as _LocalSweepLauncher


class LocalLauncher(_LocalSweepLauncher):
    """`launcher=local` and `launcher=local_parallel`."""


class SlurmLauncher(_SlurmSweepLauncher):
    """`launcher=slurm`."""


class OptunaSweeper(_OptunaSweeper):
    """`sweep=optuna`."""
