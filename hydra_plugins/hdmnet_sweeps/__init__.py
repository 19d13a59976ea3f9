"""Where Hydra looks for plugins: it takes launchers and sweepers only from a package `hydra_plugins`."""

from __future__ import annotations

from hdmnet.sweeps.launcher import LocalSweepLauncher as _LocalSweepLauncher
from hdmnet.sweeps.optuna import OptunaSweeper as _OptunaSweeper
from hdmnet.sweeps.slurm import SlurmSweepLauncher as _SlurmSweepLauncher


class LocalLauncher(_LocalSweepLauncher):
    """`launcher=local` and `launcher=local_parallel`."""


class SlurmLauncher(_SlurmSweepLauncher):
    """`launcher=slurm`."""


class OptunaSweeper(_OptunaSweeper):
    """`sweep=optuna`."""
