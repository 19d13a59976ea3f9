"""`~` in a config, replaced before Hydra makes a folder of that name."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, read_write

from hdmnet.config.paths import expand_home_in
from hdmnet.runtime.errors import UserError


class NoHomeError(BaseException):
    """There is no home folder; not an `Exception`, of which Hydra would make a warning. Its cause is the error."""


def expand_home_of_command(config: DictConfig) -> None:
    """Replace `~` in all values of a command's config, those of Hydra's own part among them, in place.

    Raises:
        NoHomeError: There is such a value, and the user has no home folder.
    """
    try:
        with read_write(config), read_write(config.hydra):
            for group in ("paths", "hydra"):  # to the first of them the others refer
                if OmegaConf.select(config, group) is not None:
                    expand_home_in(config[group])
            expand_home_in(config)
    except UserError as error:
        raise NoHomeError from error
