from __future__ import annotations

import csv
import resource

import pytest

from hdmnet.loggers.csv import CsvLogger


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.fixture
def log(tmp_path):
    """A file of three steps, of which the second has another column."""
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"a": 1.5}, 0)
    logger.save()
    logger.log_metrics({"b": 2.0}, 1)
    logger.log_metrics({"a": 3.0}, 2)
    logger.save()
    return logger


def test_rows_and_new_columns(log, tmp_path):
    assert rows(tmp_path) == [{"a": "1.5", "step": "0"}, {"b": "2.0", "step": "1"}, {"a": "3.0", "step": "2"}]
    assert [log.rows_before(step) for step in (0, 1, 3)] == [0, 1, 3]


def test_a_new_run_begins_a_new_file(log, tmp_path):
    other = CsvLogger(tmp_path)
    other.log_metrics({"c": 1.0}, 0)
    other.save()
    assert rows(tmp_path) == [{"c": "1.0", "step": "0"}]


def test_a_resumed_run_goes_on_with_the_first_rows(log, tmp_path):
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4.0,")  # killed while it wrote
    other = CsvLogger(tmp_path)
    other.keep(2)
    assert other.rows_before(10) == 2
    other.log_metrics({"a": 4.0, "c": 5.0}, 2)
    other.save()
    assert rows(tmp_path) == [
        {"a": "1.5", "step": "0"}, {"b": "2.0", "step": "1"}, {"a": "4.0", "c": "5.0", "step": "2"}
    ]  # fmt: skip


def test_nothing_to_keep(tmp_path):
    logger = CsvLogger(tmp_path)
    logger.keep(5)
    assert not (tmp_path / "metrics.csv").exists()
    logger.log_metrics({"a": 1.0}, 7)
    logger.finalize("success")
    assert rows(tmp_path) == [{"a": "1.0", "step": "7"}]


def test_a_full_disk_costs_nothing_when_there_is_room_again(log, tmp_path, caplog):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = (tmp_path / "metrics.csv").read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 3, limits[1]))
        for step in (3, 4):
            log.log_metrics({"a": 1.0, "new": 2.0}, step)
            log.save()
            log.log_metrics({"b": 5.0}, step)
            log.save()
            assert (tmp_path / "metrics.csv").read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.save()
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3", "3", "4", "4"]
    assert rows(tmp_path)[3] == {"a": "1.0", "new": "2.0", "step": "3"}
    assert len(caplog.records) == 1  # said once
    assert "the run goes on" in caplog.text
