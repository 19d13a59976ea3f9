"""A network as one file that runs without this package: ONNX, or torch.export's .pt2.

Either the supports are part of the file (query in) or they are inputs (query, supports and their masks in). Pictures
are float32 RGB from 0 to 255, normalised inside; batch, height and width are free. Of a backbone that pads pictures
(`multiple_of`, for a ViT's patches) height and width are the segmenter's: exporters can follow that for one size only.
Before a file gets its name it is read again, run, and compared with the model.

Dimension letters: B queries, C classes, K shots, H W pixels of queries, H_s W_s of supports.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import hdmnet
from hdmnet.data.normalise import normalise
from hdmnet.models.hdmnet.export import SupportAsInput, SupportFitted, answers
from hdmnet.models.hdmnet.model import HDMNet
from hdmnet.runtime.atomic import replacing
from hdmnet.runtime.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hdmnet.apps.segmenter import Segmenter
    from hdmnet.models.hdmnet.features import SupportFeatures

SUFFIXES = (".onnx", ".pt2")
TOLERANCE = 1e-4  # of the file's logits and probabilities against the model's
OPSET = 18  # the oldest that torch's exporter writes: more runtimes read it
INPUTS = ("query", "support_images", "support_masks")
OUTPUTS = ("logits", "probability")
ABOUT = "hdmnet.json"  # in a .pt2 file

Answer = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        about: What the file says of itself.
        difference: Largest absolute difference of its logits and probabilities from the model's.
        sizes: (H, W) in pixels of the queries that were compared.
    """

    about: dict[str, str]
    difference: float
    sizes: tuple[tuple[int, int], ...]


def export(segmenter: Segmenter, path: str | Path, *, shots: int | None = None) -> Exported:
    """Write a segmenter's network to a file, once the file's answers have been seen to be the network's.

    Args:
        segmenter: On the CPU.
        path: NAME.onnx or NAME.pt2; replaced whole, or left as it was.
        shots: K supports are inputs; None: the fitted supports become part of the file.

    Returns:
        What was written.

    Raises:
        ValueError: The name ends otherwise, nothing is fitted, the network cannot be exported, ONNX is not installed,
            or the file's answers are not the network's.
    """
    path = Path(path)
    _check(segmenter, path, shots)
    model, recipe = cast("HDMNet", segmenter.model), segmenter.recipe
    module: SupportAsInput | SupportFitted
    if shots is None:
        supports = [cast("SupportFeatures", one.features) for one in segmenter.fitted.values()]
        module = SupportFitted(model, recipe.mean, recipe.std, supports)
    else:
        module = SupportAsInput(model, recipe.mean, recipe.std)
    least = module.model.smallest_side
    height, width = (max(side, least) for side in segmenter.image_size)
    sizes = tuple(dict.fromkeys([(least, least), (least + 7, 2 * least), (height, width), (height, width + 13)]))
    fixed = None
    if model.trunk.base_learner.backbone.multiple_of > 1:
        if (height, width) != segmenter.image_size:
            raise InputError(f"export: image_size={list(segmenter.image_size)}: expected sides of at least {least}")
        fixed, sizes = (height, width), ((height, width),)
    about = export_metadata(segmenter, shots, least, fixed)
    shapes = dynamic_shapes(shots, least, fixed)
    with _quiet():
        program = trace(module.eval(), shots, shapes, fixed)
    with replacing(path) as temporary:
        if path.suffix == ".onnx":
            with _quiet():
                write_onnx(program, about, temporary, shapes)
            answer = open_onnx(temporary)
        else:
            write_pt2(program, about, temporary)
            answer = open_pt2(temporary)
        difference = largest_difference(segmenter, answer, shots, sizes)
        if not difference <= TOLERANCE:
            raise InputError(
                f"{path}: the file's answers differ from the model's by {difference:.1e}; expected at most "
                f"{TOLERANCE:g}: not written"
            )
    return Exported(about, difference, sizes)


def _check(segmenter: Segmenter, path: Path, shots: int | None) -> None:
    """Refuse what cannot be exported, before any work; see `export`."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    model = cast("nn.Module", segmenter.model)
    if not isinstance(model, HDMNet):
        raise InputError(f"a {type(model).__name__} cannot be exported; expected an HDMNet")
    if segmenter.device.type != "cpu":
        raise InputError(f"export: the segmenter is on {segmenter.device}; expected device='cpu'")
    if shots is not None and shots < 1:
        raise InputError(f"export: shots={shots}: expected at least 1")
    if shots is None and not segmenter.classes:
        raise InputError("export: no supports are fitted; fit some, or give their number for supports as inputs")
    if path.suffix == ".onnx":
        _require_onnx(path)


def export_metadata(
    segmenter: Segmenter, shots: int | None, least: int, fixed: tuple[int, int] | None
) -> dict[str, str]:
    """What a file says of itself: `metadata_props` of ONNX, `hdmnet.json` of torch.export; lists are JSON.

    Args:
        segmenter: As in `export`.
        shots: As in `export`.
        least: Smallest height and width admitted.
        fixed: The only (H, W) admitted; None: any.

    Returns:
        Texts by name.
    """
    recipe, fitted = segmenter.recipe, segmenter.fitted
    return {
        "hdmnet_version": hdmnet.__version__,
        "classes": json.dumps(list(fitted) if shots is None else []),
        "shots": json.dumps([one.shots for one in fitted.values()] if shots is None else [shots]),
        "image_size": json.dumps(list(recipe.image_size)),
        **({"smallest_side": str(least)} if fixed is None else {"only_size": json.dumps(list(fixed))}),
        "input": "float32 RGB from 0 to 255, (batch, 3, height, width); normalised inside with mean and std",
        "output": "probability above 0.5 is foreground; logits are background and foreground",
        "mean": json.dumps(list(recipe.mean)),
        "std": json.dumps(list(recipe.std)),
    }


# ------------------------------------------------------------------------------------------------------------ writing


def dynamic_shapes(shots: int | None, least: int, fixed: tuple[int, int] | None) -> tuple[Any, ...]:
    """The free dimensions of each input; see `export` for `shots`, `export_metadata` for the others."""
    batch = Dim("batch")
    if fixed is not None:
        return ({0: batch},) * (1 if shots is None else len(INPUTS))
    query, supports = (
        {0: batch, first: Dim(f"{name}height", min=least), first + 1: Dim(f"{name}width", min=least)}
        for name, first in (("", 2), ("support_", 3))
    )
    return (query,) if shots is None else (query, supports, {0: batch, 2: supports[3], 3: supports[4]})


def trace(
    module: SupportAsInput | SupportFitted, shots: int | None, shapes: tuple[Any, ...], fixed: tuple[int, int] | None
) -> ExportedProgram:
    """Export with free batch, height and width.

    Args:
        module: What to export, in evaluation mode.
        shots: As in `export`.
        shapes: From `dynamic_shapes`.
        fixed: As in `export_metadata`.

    Returns:
        The program.
    """
    least = module.model.smallest_side
    # No two sizes alike, and none the least, so that nothing is taken for constant.
    query = random_pictures(2, fixed or (least + 16, least + 40))
    inputs: tuple[Tensor, ...] = (query,)
    if shots is not None:
        size = fixed or (least + 24, least + 56)
        inputs = (query, random_pictures(2 * shots, size).unflatten(0, (2, shots)), random_masks(2, shots, size))
    with torch.no_grad():
        return torch.export.export(
            module,
            inputs,
            dynamic_shapes=shapes,
            # Some sizes can only be seen to be right when the program runs.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def write_onnx(program: ExportedProgram, about: dict[str, str], path: Path, shapes: tuple[Any, ...]) -> None:
    """Write an ONNX file; see `export_metadata` for `about`, `dynamic_shapes` for `shapes`."""
    written = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=INPUTS[: len(shapes)],
        output_names=OUTPUTS,
        dynamic_shapes=shapes,
        verbose=False,
    )
    assert written is not None
    for node in written.model.graph:  # source lines of this machine, which nobody needs
        node.metadata_props.clear()
    written.model.metadata_props.update(about)
    written.save(path, external_data=False)


def write_pt2(program: ExportedProgram, about: dict[str, str], path: Path) -> None:
    """Write a torch.export file; see `export_metadata` for `about`."""
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})


def _require_onnx(path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"{path}: ONNX needs {error.name}: pip install 'hdmnet[export]', or export to .pt2") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' remarks on their own insides."""
    names = ("onnxscript", "onnx_ir", "torch.onnx")
    levels = [logging.getLogger(name).level for name in names]
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)


# ---------------------------------------------------------------------------------------------------------- comparing


def open_onnx(path: Path) -> Answer:
    """What onnxruntime answers with a file on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def answer(*inputs: Tensor) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        return [torch.from_numpy(value) for value in session.run(OUTPUTS, feed)]

    return answer


def open_pt2(path: Path) -> Answer:
    """What a torch.export file answers."""
    with path.open("rb") as file:
        module: Answer = torch.export.load(file).module()
    return torch.no_grad()(module)


@torch.no_grad()
def largest_difference(
    segmenter: Segmenter, answer: Answer, shots: int | None, sizes: Sequence[tuple[int, int]]
) -> float:
    """Largest difference of a file's logits and probabilities from the model's, over random pictures.

    Args:
        segmenter: The model, and the fitted supports.
        answer: The file's.
        shots: As in `export`.
        sizes: (H, W) of the queries, in pixels; supports that are inputs have the first.

    Returns:
        The difference.
    """
    largest = 0.0
    for size in sizes:
        query = random_pictures(1, size)
        if shots is None:
            theirs, ours = answer(query), fitted_answers(segmenter, query)
        else:
            images, masks = random_pictures(shots, sizes[0])[None], random_masks(1, shots, sizes[0])
            recipe = segmenter.recipe
            mean_std = recipe.mean, recipe.std
            output = segmenter.model(normalise(query, *mean_std), normalise(images, *mean_std), masks)
            theirs, ours = answer(query, images, masks), answers([output])
        for one, other in zip(theirs, ours, strict=True):
            # Also NaN is a difference, and `max` would pass over it.
            largest = max(largest, float((one - other).abs().nan_to_num(nan=torch.inf).max()))
    return largest


@torch.no_grad()
def fitted_answers(segmenter: Segmenter, query: Tensor) -> tuple[Tensor, Tensor]:
    """What the model itself answers to queries (B, 3, H, W) float from 0 to 255, with the fitted supports.

    Returns:
        Logits (B, C, 2, H, W) and foreground probabilities (B, C, H, W).
    """
    model: Any = segmenter.model
    encoded = model.encode_query(normalise(query, segmenter.recipe.mean, segmenter.recipe.std))
    outputs = [
        model.match(encoded, type(one.features).stack([one.features] * len(query)), shots=one.shots)
        for one in segmenter.fitted.values()
    ]
    return answers(outputs)


def random_pictures(count: int, size: tuple[int, int]) -> Tensor:
    """(count, 3, H, W) float32 from 0 to 255, the same at every call: coarse blots under fine noise."""
    generator = torch.Generator().manual_seed(0)
    blots = F.interpolate(torch.rand(count, 3, 6, 6, generator=generator), size, mode="bicubic", align_corners=False)
    pictures = 220 * blots + 35 * torch.rand(count, 3, *size, generator=generator)
    return pictures.clamp(0, 255).round()


def random_masks(batch: int, shots: int, size: tuple[int, int]) -> Tensor:
    """(batch, shots, H, W) uint8, 0 and 1 in large pieces, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, shots, 5, 5, generator=generator) > 0.5
    return F.interpolate(coarse.float(), size, mode="nearest").to(torch.uint8)
