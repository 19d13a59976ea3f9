"""Where Hydra looks for plugins: it takes them only from a package `hydra_plugins`."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hdmnet.config.paths import user_conf_dirs
from hdmnet.sweeps.launcher import LocalSweepLauncher as _LocalSweepLauncher
from hdmnet.sweeps.optuna import OptunaSweeper as _OptunaSweeper
from hdmnet.sweeps.slurm import SlurmSweepLauncher as _SlurmSweepLauncher


class LocalLauncher(_LocalSweepLauncher):
    """`launcher=local` and `launcher=local_parallel`."""


class SlurmLauncher(_SlurmSweepLauncher):
    """`launcher=slurm`."""


class OptunaSweeper(_OptunaSweeper):
    """`sweep=optuna`."""


class UserConfigs(SearchPathPlugin):
    """`HDMNET_CONF=DIR[:DIR]`: the user's own config groups and options, behind those of conf/."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folders."""
        for folder in user_conf_dirs():
            search_path.append("HDMNET_CONF", f"file://{folder}")
