"""`metrics.csv`: Lightning's CSV log, which a resumed run continues and which survives a full disk."""

from __future__ import annotations

import csv
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.home import expand_home

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)


class CsvLogger(CSVLogger):
    """Lightning's CSV logger with `metrics.csv` right in a folder.

    A file that an earlier run has left is replaced, unless `keep` is called.

    Args:
        save_dir: The run's folder.
        flush_logs_every_n_steps: Steps between two writings; each checkpoint writes too.
    """

    runs_in = ("train",)

    def __init__(self, save_dir: str | Path, flush_logs_every_n_steps: int = 100) -> None:
        super().__init__(expand_home(save_dir), name="", version="", flush_logs_every_n_steps=flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, on the first process."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment

    @rank_zero_only
    def keep(self, num_rows: int) -> None:
        """Go on with the file of an earlier run, shortened to its first rows."""
        self.experiment.keep(num_rows)

    def rows_before(self, step: int) -> int:
        """Number of rows of earlier steps, on the first process; 0 on the others."""
        return self._experiment.rows_before(step) if isinstance(self._experiment, _Writer) else 0


class _Writer(ExperimentWriter):
    """Appends rows; the file is rewritten where a new column comes."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir)
        self.path = Path(self.metrics_file_path)
        self._steps: list[int] = []  # of each row, written or not
        self._begun = False
        self._failed = False

    def _check_log_dir_exists(self) -> None:
        """Delete nothing yet: a resume may want it."""

    def keep(self, num_rows: int) -> None:
        rows = _read(self.path)[:num_rows] if self.path.is_file() else []
        self._begun = True
        self.metrics, self.metrics_keys = [], sorted(rows[0]) if rows else []
        self._steps = [int(row["step"]) for row in rows]
        self.path.unlink(missing_ok=True) if not rows else self._rewrite(rows)

    def rows_before(self, step: int) -> int:
        return sum(one < step for one in self._steps)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics_dict, step)
        self._steps.append(int(self.metrics[-1]["step"]))

    def save(self) -> None:
        """Write what was logged; on failure it is kept for the next time."""
        if not self.metrics:
            return
        try:
            self._save()
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s); the run goes on, and tries again", self.path, error)
            self._failed = True

    def _save(self) -> None:
        if not self._begun:
            self.path.unlink(missing_ok=True)
            self._begun = True
        exists, keys = self.path.is_file(), list(self.metrics_keys)
        if self._record_new_keys() or not exists:
            try:
                self._rewrite(_read(self.path) if exists else [])
            except OSError:
                self.metrics_keys = keys  # those that the file has
                raise
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        except OSError:
            os.truncate(self.path, size)  # half a row would stay in the middle of the file
            raise
        self.metrics = []

    def _rewrite(self, rows: Sequence[dict[str, Any]]) -> None:
        with replacing(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def _read(path: Path) -> list[dict[str, Any]]:
    """All whole rows: a run that was killed may have left half a one at the end."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return [row for row in reader if None not in row and None not in row.values()]
