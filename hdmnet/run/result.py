"""What a finished run writes: `result.json` and the table printed at its end.

`result.json` (IoUs as fractions of 1, NaN written as `null`)::

    dataset method fold shot backbone ablation seed
    test:              {miou, miou_interval [of 95 %, over the query pictures: `hdmnet.tasks.intervals`; null: nothing
                        tells], miou_std, miou_per_seed, fb_iou, fb_iou_per_seed, iou_per_class {name: iou},
                        counts_per_class {name: episodes over all seeds}, num_episodes, num_episodes_per_seed,
                        num_classes_averaged [a seed's mIoU is the mean of so many classes, one number a seed],
                        classes_left_out {name: {seeds: test seeds in which it has no IoU, reason}}}
    test_no_ensemble:  the same of HDMNet's meta learner alone (`test` again where nothing is fused); null for others
    test_NAME:         the same of every other prediction that the method reports
    baselines:         {num_episodes, miou [of the final prediction on these], untrained_prototype: {miou, difference,
                        interval [of 95 %], is_above [null: nothing tells]}, support_mask_ones: the same,
                        missing {name: why}, warning [null: none]}; on the first test seed; null: not asked for
    training:          {helped, method, handed_back [one of the two methods], trained_checkpoint, validation [as
                        baselines, on the validation episodes]}, only with optim.fall_back
    controls:          {support_mask_ones: miou, every_object_foreground: miou [an oracle: it knows the true objects]},
                        of the whole first test seed, each only when measured (dataset.controls)
    way:               N, of an evaluation with way=N above 1; `test` then has, each with `_per_seed`, iou_background,
                        miou_with_background, exact_match [see `SeveralClassesIoU`]; counts_per_class are the episodes
                        whose query shows the class
    generalised:       true, of an evaluation with generalised=true: as of several ways, of base and novel classes;
                        `test` has miou_base, miou_novel and harmonic_mean too; num_episodes are pictures
    trained_on:        of an evaluation, {dataset, fold, shot} of the training, where the checkpoint tells it
    too_few_images:    classes that no episode is drawn of: {list: {name: number of images}}
    skipped:           files that `dataset.on_error=skip` left out: [{split, why, episodes}], see `skipped_files`
    vanished:          {list: {class: objects of which nothing is left at the network's size}}; they are no supports
    left_out:          what of the data set's folders and files is not used: [{what, count, names [at most 100]}]
    manifest_sha256 config versions git_commit git_dirty hardware timings {phase: seconds}
    processor_seconds {phase: seconds} peak_memory_mb

Beside it lies `episodes.csv`, what every prediction got right of each episode: `hdmnet.tasks.episode_table`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hdmnet.config.renamed import protocol_name, upgrade
from hdmnet.config.values import HDMNET, method_of
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.console import classes_to_show, name_some
from hdmnet.runtime.errors import InputError, MissingFileError
from hdmnet.runtime.home import expand_home
from hdmnet.runtime.provenance import git_state, hardware, library_versions

FIXED_KEYS = (
    *("dataset", "method", "fold", "shot", "backbone", "ablation", "seed"),
    *("test", "test_no_ensemble", "manifest_sha256", "config", "versions", "git_commit", "timings"),
)
TEST_KEYS = ("miou", "fb_iou", "miou_per_seed", "iou_per_class", "num_episodes")

_OF_THE_CONFIG = ("fold", "shot", "ablation", "seed", "selection", "support_mask")
_CONTROL_LABELS = {
    "untrained_prototype": "untrained prototype, same trunk",
    "support_mask_ones": "control: support mask all ones",
    "every_object_foreground": "oracle: every true object foreground",
}

_FURTHER_LABELS = {
    "miou_base": "mIoU of base classes",
    "miou_novel": "mIoU of novel classes",
    "harmonic_mean": "harmonic mean of these",
    "miou_with_background": "mIoU with background",
    "exact_match": "exact match of the classes shown",
}


def make_result(
    config: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]], *facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Put a run's result together from what config, test, data and run say of themselves.

    Args:
        config: The composed config, as plain containers.
        figures: Of each prediction that the method reports ("final", "meta" …) what `summarise_seeds` gives.
        *facts: Further entries: `manifest_sha256`, `timings`, `controls`, `checkpoint` …; a later one wins.

    Returns:
        The result as described at the top of this module; a plain dictionary, NaN still NaN.
    """
    method, final = method_of(config), figures["final"]
    entries: dict[str, Any] = {
        "dataset": config["dataset"]["name"],
        "method": method,
        "backbone": config["backbone"]["name"],
        **{key: config[key] for key in _OF_THE_CONFIG},
        "protocol": config["protocol"]["name"],
        "test": dict(final),
        "test_no_ensemble": figures.get("meta", final if method == HDMNET else None),
        **{f"test_{name}": dict(entry) for name, entry in figures.items() if name not in ("final", "meta")},
    }
    for more in facts:
        entries |= more
    return {**entries, "versions": library_versions(), **git_state(), "hardware": hardware(), "config": config}


def _plain(value: Any, where: str) -> Any:
    """Turn a tree into what JSON can hold: NaN and infinity become `None`, paths text, tensors and arrays lists."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (np.generic, np.ndarray)) or hasattr(value, "detach"):
        value = value.detach().cpu().tolist() if hasattr(value, "detach") else value.tolist()
        return _plain(value, where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise InputError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; convert it to plain containers first"
    )


def _check_result(result: Any, origin: str) -> None:
    """Raise `ValueError` when a fixed key is missing or an entry has the wrong kind."""
    if not isinstance(result, Mapping):
        raise InputError(f"{origin} holds a {type(result).__name__}; expected an object with the keys of a result")
    missing = [key for key in FIXED_KEYS if key not in result]
    if missing:
        raise InputError(f"{origin} lacks {', '.join(missing)}; it is no result of a finished run: run it again")
    for entry, value in test_entries(result).items():
        if not isinstance(value, Mapping):
            raise InputError(f"{origin}: {entry} is {value!r}; expected an object with {', '.join(TEST_KEYS)}")
        missing = [key for key in TEST_KEYS if key not in value]
        if missing:
            raise InputError(
                f"{origin}: {entry} lacks {', '.join(missing)}; it is no result of a finished run: run it again"
            )


def test_entries(result: Mapping[str, Any]) -> dict[str, Any]:
    """`test`, `test_no_ensemble` where it is not null, and every `test_NAME` of a result."""
    found = {key: value for key, value in result.items() if key == "test" or key.startswith("test_")}
    return {key: value for key, value in found.items() if value is not None or key == "test"}


def write_result(path: str | Path, result: Mapping[str, Any]) -> Path:
    """Write `result.json` in one step, its folder too: a reader, or a crash, never meets half a file.

    Raises:
        ValueError: If a fixed key is missing or a value cannot be held by JSON.
    """
    path = Path(path)
    _check_result(result, "result")
    text = json.dumps(_plain(result, "result"), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path, durable=True) as temporary:
        # A file's name need not be UTF-8; what stands for its other bytes is escaped as JSON escapes it.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def read_result(path: str | Path) -> dict[str, Any]:
    """Read a `result.json` (or the one in a run's folder) and check its keys; undefined figures are `None`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not JSON or lacks a fixed key.
    """
    path = expand_home(path)
    if path.is_dir():
        path = path / "result.json"
    if not path.is_file():
        raise MissingFileError(
            f"no result at {path}; a run leaves one when it has finished: give a finished run's folder"
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable JSON ({error}); run it again") from error
    if isinstance(result, dict):
        result["config"] = upgrade(result["config"]) if "config" in result else None
        result["protocol"] = protocol_name(result.get("protocol"))
        result.setdefault("method", method_of(result["config"]))
    _check_result(result, str(path))
    return dict(result)


def _percent(value: float | None) -> str:
    """One IoU in %, `-` where it is undefined."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def _mean_and_std(entry: Mapping[str, Any]) -> str:
    """An entry's mIoU in %, with its spread where there are several seeds."""
    spread = _percent(entry.get("miou_std"))
    return _percent(entry["miou"]) + ("" if spread == "-" else f" ± {spread}")


def format_fold_table(result: Mapping[str, Any]) -> str:
    """Lay a result out as the table that a run prints at its end, plain text.

    IoU in % per novel class, mIoU ± standard deviation over the seeds, FB-IoU, each of all predictions that differ;
    controls; warnings of classes that are left out and of steps that were skipped.
    """
    final = result["test"]
    counts = final.get("counts_per_class") or {}
    entries = {"final": final}
    for key, entry in test_entries(result).items():
        if entry != final:  # HDMNet without its ensemble has but one prediction
            entries["meta only" if key == "test_no_ensemble" else key.removeprefix("test_")] = entry
    shown = list(entries.values())
    rows = [
        [name, str(counts.get(name, "")), *(_percent(entry["iou_per_class"].get(name)) for entry in shown)]
        for name in classes_to_show(final["iou_per_class"])
    ]
    summary = [
        ["mIoU", str(sum(final.get("num_episodes_per_seed") or counts.values()) or ""), *map(_mean_and_std, shown)],
        ["FB-IoU", "", *(_percent(entry["fb_iou"]) for entry in shown)],
    ]
    for key, label in _FURTHER_LABELS.items():
        if key in final:
            summary.append([label, "", *(_percent(entry[key]) for entry in shown)])
    for name, count, value in _beside(result):
        summary.append([_CONTROL_LABELS.get(name, f"control: {name}"), count, value, *[""] * (len(shown) - 1)])
    header = ["class (IoU in %)", "episodes", *entries]
    widths = [max(map(len, column)) for column in zip(header, *rows, *summary, strict=True)]

    def line(cells: list[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "  ".join([cells[0].ljust(widths[0]), *numbers]).rstrip()

    num_seeds = len(final["miou_per_seed"])
    title = (
        f"{result['method']}: {result['dataset']}, fold {result['fold']}, {_told_way(result)}{result['shot']}-shot, "
        f"{result['backbone']}"
        f"{'' if result['ablation'] is None else ', ablation ' + str(result['ablation'])}, seed {result['seed']}"
        f"{_elsewhere(result)}: "
        f"{final['num_episodes']} episodes x {num_seeds} test seed{'s' if num_seeds > 1 else ''}"
    )
    rule = "-" * max(len(title), sum(widths) + 2 * len(widths) - 2)
    warnings = [*left_out_notes(final), *_skipped_notes(result), *baseline_warnings(result)]
    hidden = len(final["iou_per_class"]) - len(rows)
    part = (
        f"of {len(rows) + hidden:,} classes those with the lowest and the highest IoU are shown, all are in result.json"
    )
    notes = [
        *([part] if hidden else []),
        *_interval_notes(final),
        *_training_notes(result),
        *_baseline_notes(result),
        *(f"warning: {text}" for text in warnings),
    ]
    return "\n".join([title, rule, line(header), *map(line, rows), rule, *map(line, summary), *notes])


def _told_way(result: Mapping[str, Any]) -> str:
    return "generalised " if "generalised" in result else f"{result['way']}-way " if "way" in result else ""


def _elsewhere(result: Mapping[str, Any]) -> str:
    """Where the weights were trained, if not on the data set that they are tested on."""
    trained = result.get("trained_on")
    if trained is None or trained["dataset"] == result["dataset"]:
        return ""
    return f", trained on {trained['dataset']} fold {trained['fold']}"


def left_out_notes(entry: Mapping[str, Any]) -> list[str]:
    """What has to be said beside an mIoU that leaves classes out, in one line; older results tell of no class."""
    seeds, num_classes = len(entry["miou_per_seed"]), len(entry["iou_per_class"])
    if entry["num_episodes"] == 0:
        return ["nothing was tested (trainer.limit_test_batches=0): there is no mIoU"]
    reasons: dict[str, list[str]] = {}
    for name, about in (entry.get("classes_left_out") or {}).items():
        where = "" if about["seeds"] == seeds else f" in {about['seeds']} of {seeds} test seeds"
        reasons.setdefault(f"{about['reason']}{where}", []).append(name)
    told = [f"{name_some(names)} {'has' if len(names) == 1 else 'have'} {why}" for why, names in reasons.items()]
    return [f"{'; '.join(told)}: mIoU is the mean of the other classes, not of {num_classes}"] if told else []


def _beside(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What stands beside the mIoU: name, number of episodes, mIoU in %; a control of the whole first seed only once."""
    baselines, controls = result.get("baselines") or {}, result.get("controls") or {}
    count = str(baselines.get("num_episodes", ""))
    rows = [
        (name, count, _percent(one["miou"]))
        for name, one in baselines.items()
        if isinstance(one, Mapping) and "miou" in one
    ]
    return [*rows, *((name, "", _percent(value)) for name, value in controls.items() if name not in baselines)]


def _interval_notes(entry: Mapping[str, Any]) -> list[str]:
    """How sure the mIoU is; nothing of earlier results."""
    interval = entry.get("miou_interval")
    if interval is None or None in interval or interval[0] >= interval[1]:
        return []
    low, high = (100 * end for end in interval)
    return [f"95 % interval of the mIoU, over the query pictures: {low:.1f} to {high:.1f}"]


def _training_notes(result: Mapping[str, Any]) -> list[str]:
    """What a run with `optim.fall_back` hands back, and why; none in other results."""
    training = result.get("training")
    if training is None:
        return []
    validated = training["validation"]
    untrained = validated["untrained_prototype"]
    why = (
        f"on {validated['num_episodes']} validation episodes {training['method']} reaches "
        f"{_percent(validated['miou'])}, the untrained prototype {_percent(untrained['miou'])}"
    )
    if training["handed_back"] != training["method"]:
        verdict = "did not help" if untrained["difference"] <= 0 else "helped by no more than chance"
        return [
            f"training {verdict}: {why}; the untrained prototype is handed back: it is checkpoints/best.ckpt, and "
            f"tested here (trained weights: {Path(training['trained_checkpoint']).name})"
        ]
    return [f"training helped: {why}"]


def _baseline_notes(result: Mapping[str, Any]) -> list[str]:
    """How much better than what stands beside it, and what could not be set beside it."""
    baselines = result.get("baselines") or {}
    told = [
        f"{100 * one['difference']:+.1f} on {_CONTROL_LABELS[name].removeprefix('control: ')}"
        + ("" if one["is_above"] is None else " ({:+.1f} to {:+.1f})".format(*(100 * end for end in one["interval"])))
        for name in ("untrained_prototype", "support_mask_ones")
        if (one := baselines.get(name)) is not None
    ]
    lines = [f"on these episodes: {_percent(baselines['miou'])}; {', '.join(told)}"] if told else []
    missing = baselines.get("missing") or {}
    return lines + [f"no {_CONTROL_LABELS.get(name, name)}: {why}" for name, why in missing.items()]


def baseline_warnings(result: Mapping[str, Any]) -> list[str]:
    """The one line where a method is no better than what stands beside it; none in earlier results."""
    text = (result.get("baselines") or {}).get("warning")
    return [text] if text else []


def _skipped_notes(result: Mapping[str, Any]) -> list[str]:
    steps = result.get("skipped_steps") or {}
    return [
        f"{count} step{' of' if count == 1 else 's of'} {stage} {'was' if count == 1 else 'were'} skipped, as loss or "
        "gradient was not finite: nonfinite.jsonl"
        for stage, count in steps.items()
    ]


def print_fold_table(result: Mapping[str, Any]) -> None:
    """Print `format_fold_table`, also to a terminal that cannot show `±` or the name of a class."""
    encoding = sys.stdout.encoding or "utf-8"
    text = format_fold_table(result)
    if "±".encode(encoding, errors="ignore") == b"":
        text = text.replace("±", "+-")
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), flush=True)
