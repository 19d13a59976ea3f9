"""Weights & Biases as a logger that never asks, never ends or hangs a run, and makes one W&B run for each job."""

from __future__ import annotations

import functools
import logging
import netrc
import os
import secrets
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlparse

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.console import MOST_CLASSES
from hdmnet.runtime.errors import one_line
from hdmnet.runtime.home import expand_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = logging.getLogger(__name__)

ID_FILE = "wandb_run_id"  # in the run's folder: whatever runs there again goes on with the same W&B run
_STEP = "trainer/global_step"  # Lightning's name for the axis of every chart
_BEST = ("val/miou", "val/fb_iou")  # the summary keeps their largest value, not their last

Method = TypeVar("Method", bound="Callable[..., None]")


def has_key() -> bool:
    """Whether a W&B key is at hand: in the environment, or in the netrc file for the server's host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _mode(offline: bool | None) -> str | None:
    """Online or offline, or what `WANDB_MODE` says; never online without a key, as W&B would ask for one."""
    named = os.environ.get("WANDB_MODE")
    if named is not None and named != "online":
        return named
    if offline or has_key():
        return "offline" if offline else "online"
    said = log.warning if named == "online" or offline is False else log.info
    said("wandb: no key found (WANDB_API_KEY or netrc), logging offline; send it later by `wandb sync`")
    return "offline"


def _unless_it_fails(method: Method) -> Method:
    """Make a method that only warns when it fails, the first time, and that does nothing from then on."""

    @rank_zero_only
    @functools.wraps(method)
    def guarded(self: DashboardLogger, *args: Any, **kwargs: Any) -> None:
        if self.gave_up:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self.gave_up = True
            log.warning("wandb: %s; the run goes on without it", _line(error))

    return cast(Method, guarded)


class DashboardLogger(WandbLogger):
    """Lightning's W&B logger, whose failures are warnings.

    The W&B run starts with the first logged value, on the first process only. Where the server refuses or is silent,
    it is an offline run, which `wandb sync` sends later; where that is impossible too, none.

    Args:
        save_dir: The run's folder: holds `wandb/` and the file with the run's id.
        offline: Force it on or off; None: offline where `has_key` finds none. `WANDB_MODE` in the environment wins.
        init_timeout: Seconds to wait for the server's answer at the start; W&B adds ten for the login.
        finish_timeout: Seconds to wait at the end until everything is uploaded; the rest stays on disk.
        log_model: True: the best and the last checkpoint become artifacts when training ends; "all": every one that is
            written. Offline runs keep them for `wandb sync`.
        arguments: Of `wandb.init` (project, entity, name, group, job_type, tags, notes, config …).
    """

    def __init__(
        self,
        *,
        save_dir: str,
        offline: bool | None = None,
        init_timeout: float = 60,
        finish_timeout: float = 600,
        log_model: bool | str = False,
        **arguments: Any,
    ) -> None:
        # Only a checkpoint that will be written over has to be copied.
        policy = "mutable" if log_model == "all" else "immutable"
        super().__init__(save_dir=str(expand_home(save_dir)), log_model=log_model, add_file_policy=policy, **arguments)  # type: ignore[arg-type]
        self.mode = _mode(offline)
        self.init_timeout, self.finish_timeout = init_timeout, finish_timeout
        self._wandb_init.pop("anonymous", None)  # Lightning 2.6 passes it, wandb 0.31 warns of it
        self.gave_up = False

    def describe_run(self, description: Mapping[str, Any]) -> None:
        """Take name, group, job type, tags and config of the run; what the logger's own config names, it keeps."""
        own = self._wandb_init
        own |= {key: value for key, value in description.items() if own.get(key) is None} | {
            "tags": [*description["tags"], *map(str, own.get("tags") or ())]
        }

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; started by the first call."""
        if self._experiment is None:
            self._experiment = self._start()
            self._experiment.define_metric(_STEP)
            self._experiment.define_metric("*", step_metric=_STEP)
            for name in _BEST:
                self._experiment.define_metric(name, step_metric=_STEP, summary="max")
        return self._experiment

    def _start(self) -> Any:
        """Begin the W&B run, offline or not at all where it has to be."""
        if os.path.expanduser("~") == "~":  # a container's user: W&B keeps its cache and its settings in a home folder
            os.environ["HOME"] = self._wandb_init["dir"]
        import wandb  # takes a second, and only a run that logs to it needs it

        arguments = self._wandb_init | {"id": self._wandb_init["id"] or run_id(Path(self._wandb_init["dir"]))}
        for mode in dict.fromkeys((self.mode, "offline", "disabled")):
            try:
                settings = wandb.Settings(
                    quiet=True,  # no drawing of every curve at the end of the output
                    silent=mode != "online",  # nothing but our one line; online, the link to the run
                    init_timeout=self.init_timeout,
                    finish_timeout=self.finish_timeout,
                )
                run = wandb.init(**arguments, mode=mode, settings=settings)  # type: ignore[arg-type]
            except Exception as error:
                log.warning("wandb: no run in mode %s: %s", mode, _line(error))
                wandb.teardown()  # or its process would take the next start for the same run, and write nothing
                continue
            if run.settings.mode == "offline":
                log.info("wandb: offline run; send it by `wandb sync %s`", Path(run.dir).parent)
            return run
        raise RuntimeError("no W&B run could be started, not even a disabled one")

    log_metrics = _unless_it_fails(WandbLogger.log_metrics)
    log_hyperparams = _unless_it_fails(WandbLogger.log_hyperparams)
    finalize = _unless_it_fails(WandbLogger.finalize)

    log_image = _unless_it_fails(WandbLogger.log_image)
    after_save_checkpoint = _unless_it_fails(WandbLogger.after_save_checkpoint)

    @_unless_it_fails
    def log_class_scores(self, split: str, scores: Mapping[str, Mapping[str, Any]], step: int) -> None:
        """Log the IoU of each class as curve, table and bars, of many as table and histogram; for "test" mIoU too.

        Args:
            split: "val" or "test", the first part of every key.
            scores: By prediction ("final" first, "meta" …) what `hdmnet.tasks.summary.summarise_seeds` gives.
            step: Optimiser step.
        """
        import wandb

        final = scores["final"]
        titles = {"final": "IoU", "meta": "IoU, meta only"}
        columns: list[str | int] = ["class", *(titles.get(name, f"IoU, {name}") for name in scores), "episodes"]
        ious = [one["iou_per_class"] for one in scores.values()]
        data = [[cls, *(iou[cls] for iou in ious), count] for cls, count in final["counts_per_class"].items()]
        table = wandb.Table(columns=columns, data=data)
        few = len(data) <= MOST_CLASSES
        values: dict[str, Any] = {f"{split}/iou/{name}": iou for name, iou in final["iou_per_class"].items() if few}
        if split == "test":  # the validation's are logged by the task
            for name, one in scores.items():
                suffix = "" if name == "final" else f"_{name}"
                values |= {f"test/{figure}{suffix}": one[figure] for figure in ("miou", "fb_iou")}
        known = {name: value for name, value in values.items() if value == value}  # a class may have had no episode
        shown: dict[str, Any] = {f"{split}/iou_per_class": table}
        if few:
            bars = wandb.plot.bar(table, "class", "IoU", title=f"{split}: IoU per class")
            shown[f"{split}/iou_per_class_bars"] = bars
        else:
            shown[f"{split}/iou_histogram"] = wandb.plot.histogram(table, "IoU", title=f"{split}: IoU of the classes")
        self.experiment.log({**known, **shown, _STEP: step})

    @_unless_it_fails
    def log_baselines(self, baselines: Mapping[str, Any]) -> None:
        """Put what stands beside the test into the summary, see `baselines` in `hdmnet.run.result`.

        That is the mIoU of each baseline, how much better the method is, and the warning if there is one.
        """
        summary = self.experiment.summary
        for name, one in baselines.items():
            if isinstance(one, dict) and "miou" in one:
                summary[f"test/miou_{name}"] = one["miou"]
                summary[f"test/better_than_{name}"] = one["difference"]
        if baselines.get("warning"):
            summary["warning"] = baselines["warning"]


def run_id(folder: Path) -> str:
    """The id of the W&B run that belongs to a run's folder; made and kept there when there is none yet."""
    path = folder / ID_FILE
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(secrets.token_hex(4) + "\n", encoding="ascii")
    return path.read_text(encoding="ascii").strip()


@contextmanager
def one_wandb_run() -> Iterator[None]:
    """End the W&B run that the job inside has started, as failed when it raises: the next job begins its own."""
    try:
        yield
    except BaseException:
        _finish(exit_code=1)
        raise
    _finish(exit_code=0)


def _finish(exit_code: int) -> None:
    wandb = sys.modules.get("wandb")  # importing it takes a second, and without it there is no run
    if wandb is None or wandb.run is None:
        return
    try:
        wandb.finish(exit_code=exit_code)
    except Exception as error:
        log.warning("wandb: %s; what is missing there is in the run's folder, for `wandb sync`", _line(error))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
