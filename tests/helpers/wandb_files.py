"""Reads an offline W&B run back: a log of protobuf records in LevelDB's framing (blocks of 32 KiB)."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _FRAME = 32 * 1024, 7  # bytes; a frame: crc32, length, kind (1 whole, 2 first, 3 middle, 4 last part)


@dataclass
class OfflineRun:
    """What one `offline-run-*` folder holds; keys with their parts joined by dots."""

    folder: Path
    about: Any = None  # the run's record: run_id, project, display_name, run_group, job_type, tags
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # by name what define_metric said
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def keys(self) -> set[str]:
        """Everything that was logged."""
        return {key for row in self.history for key in row}

    def values(self, key: str) -> list[Any]:
        """What was logged under a key, in order."""
        return [row[key] for row in self.history if key in row]

    def media(self, key: str) -> list[Path]:
        """The files behind a key's tables or pictures, in order."""
        files = [*self.values(f"{key}.path"), *(name for names in self.values(f"{key}.filenames") for name in names)]
        return [self.folder / "files" / file for file in files]

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of the last table under a key."""
        content = json.loads(self.media(key)[-1].read_text(encoding="utf-8"))
        return content["columns"], content["data"]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The offline W&B runs of a run's folder, oldest first."""
    return [read_run(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]


def read_run(folder: Path) -> OfflineRun:
    """Read an `offline-run-*` folder."""
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun(folder)
    (file,) = folder.glob("run-*.wandb")
    for content in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.about = record.run
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(content: bytes) -> Iterator[bytes]:
    assert content.startswith(b":W&B"), content[:8]
    position, record = 7, b""
    while position + _FRAME <= len(content):
        if _BLOCK - position % _BLOCK < _FRAME:  # the rest of a block that has no room for a frame is padding
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        position += _FRAME
        record += content[position : position + length]
        position += length
        if kind in (1, 4):
            yield record
            record = b""
