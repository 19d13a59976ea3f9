"""Composes an entry point's config for a script."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hdmnet.cli.errors import composition_message
from hdmnet.cli.quoting import quote_paths
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, expand_home_in
from hdmnet.config.schemas import register_schemas
from hdmnet.runtime.errors import ConfigError


def compose_words(config_name: str, words: Sequence[str]) -> DictConfig:
    """Compose an entry point's config of the words of its command line, as the entry point would; it is not checked.

    Raises:
        ConfigError: Hydra refuses a word; one line.
        InputError: A word has `~`, and the user has no home folder.
    """
    register_schemas()
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
            cfg = compose(config_name, overrides=list(map(quote_paths, words)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(composition_message(error, config_name)) from error
    expand_home_in(cfg)
    return cfg
