"""Where the configs lie, and the folders that they name."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, open_dict


def conf_dir() -> Path:
    """Folder of the configs: `hdmnet/conf` in an installed wheel, `conf` at the root of a checkout.

    Raises:
        FileNotFoundError: Neither is there; the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"no conf/train.yaml in or beside {package}: install hdmnet again")


def make_paths_absolute(cfg: DictConfig, run_dir: str | Path) -> None:
    """Fix the folders of `paths` in place: absolute from the current folder, `~` expanded, `run_dir` filled in.

    Args:
        cfg: A door's composed config.
        run_dir: The run's own folder.
    """
    with open_dict(cfg):
        for key in list(cfg.paths):
            if cfg.paths[key] is not None:
                cfg.paths[key] = str(Path(cfg.paths[key]).expanduser().absolute())
        cfg.paths.run_dir = str(Path(run_dir).absolute())
