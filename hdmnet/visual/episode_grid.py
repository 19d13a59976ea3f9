"""Pictures of episodes: supports, query, truth, predictions and a method's maps, one row per episode.

Colours (told apart with any of the common colour-vision deficiencies): truth and support masks bluish green,
predictions vermilion, ignored pixels hatched grey; heat maps in viridis, each stretched from its own least to its own
largest value, which are written above it, with the truth's outline in white.

Legend: K supports, H/W input pixels, h/w cells of a map. All panels show the network's input frame (resized straight to
the square), not the original pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hdmnet.data.io.arrays import IGNORE
from hdmnet.data.types import Episode
from hdmnet.models.method import FINAL
from hdmnet.runtime.atomic import replacing
from hdmnet.visual.colours import PREDICTION, TRUTH

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

INK, FAINT, PAPER = (20, 20, 20), (90, 90, 90), (255, 255, 255)
_GAP, _LABEL_HEIGHT, _TITLE_HEIGHT, _PANEL_HEIGHT = 8, 44, 36, 200
_TITLE, _LABEL, _NOTE = 19, 17, 14  # sizes of letters, to be read at half of them too
_MAX_SUPPORTS = 5
_TINT = 0.35  # opacity of a mask
_LABELS = {"meta": "meta only"}  # of predictions, where there are several


@lru_cache(maxsize=8)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The DejaVu font that matplotlib brings along, so that every machine draws the same."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _panel_size(height: int, width: int) -> tuple[int, int]:
    """Size (width, height) of a panel that shows an image of (height, width)."""
    return max(1, round(_PANEL_HEIGHT * width / height)), _PANEL_HEIGHT


def _at_panel_size(panel: Picture, mask: NDArray[Any]) -> NDArray[Any]:
    """A mask (H, W) bool as (h, w) uint8, 0/1, of a panel (h, w, 3)."""
    return cv2.resize(mask.astype(np.uint8), panel.shape[1::-1], interpolation=cv2.INTER_NEAREST)


def _outline(panel: Picture, region: NDArray[Any], *lines: tuple[tuple[int, int, int], int]) -> None:
    """Draw the outline of a region (h, w) uint8 in lines of (colour, thickness), in place."""
    outlines, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    for colour, thickness in lines:
        cv2.drawContours(panel, outlines, -1, colour, thickness)


def with_mask(
    image: Picture, mask: NDArray[Any], colour: tuple[int, int, int], size: tuple[int, int], *, line: int = 2
) -> Picture:
    """Lay a mask over an image: a tint, an outline, ignored pixels hatched grey.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) 0/1/255.
        colour: RGB of the tint and the outline.
        size: (width, height) of the result.
        line: Thickness of the outline, in pixels of the result.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    smooth = cv2.INTER_AREA if size[1] < image.shape[0] else cv2.INTER_CUBIC
    panel = np.array(cv2.resize(image, size, interpolation=smooth), np.uint8)
    rows, columns = np.indices(panel.shape[:2])
    panel[(_at_panel_size(panel, mask == IGNORE) > 0) & ((rows + columns) % 6 < 3)] = 190
    region = _at_panel_size(panel, mask == 1)
    inside = region.astype(bool)
    panel[inside] = ((1 - _TINT) * panel[inside] + _TINT * np.asarray(colour, np.float32)).astype(np.uint8)
    _outline(panel, region, ((0, 0, 0), 2 * line), (colour, line))  # the dark edge shows on any ground
    return panel


def _heat(values: NDArray[np.float32], size: tuple[int, int], truth: NDArray[Any]) -> Picture:
    """A (h, w) map as a viridis panel of (width, height), its cells visible, with the truth's outline."""
    from matplotlib import colormaps

    finite = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    scaled = (finite - low) / (high - low) if high > low else np.zeros_like(finite)
    cells = np.asarray(colormaps["viridis"](scaled)[..., :3] * 255, dtype=np.uint8)
    panel = np.asarray(cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    _outline(panel, _at_panel_size(panel, truth == 1), ((255, 255, 255), 1))
    return panel


def episode_iou(prediction: NDArray[Any], truth: NDArray[Any]) -> float:
    """Foreground IoU of one episode in the input frame.

    Args:
        prediction: (H, W) 0/1 or bool.
        truth: (H, W) 0/1/255.

    Returns:
        Intersection over union without the ignored pixels; NaN when neither holds a foreground pixel.
    """
    predicted, valid = prediction.astype(bool), truth != IGNORE
    union = int(((predicted | (truth == 1)) & valid).sum())
    return int((predicted & (truth == 1)).sum()) / union if union else float("nan")


def _row(panels: Sequence[tuple[str, str, Picture]], title: str, details: str) -> Picture:
    """Set named panels side by side under a title line."""
    width = sum(panel.shape[1] + _GAP for *_, panel in panels) + _GAP
    bold, plain = font(_TITLE, bold=True), font(_NOTE)
    title_width = round(bold.getlength(title) + 16 + plain.getlength(details)) + 2 * _GAP
    sheet = Image.new("RGB", (max(width, title_width), _TITLE_HEIGHT + _LABEL_HEIGHT + _PANEL_HEIGHT + _GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, _TITLE_HEIGHT - 8), title, fill=INK, font=bold, anchor="ls")
    draw.text((_GAP + bold.getlength(title) + 16, _TITLE_HEIGHT - 8), details, fill=FAINT, font=plain, anchor="ls")
    left = _GAP
    for name, note, panel in panels:
        draw.text((left, _TITLE_HEIGHT), name, fill=INK, font=font(_LABEL))
        draw.text((left, _TITLE_HEIGHT + 22), note, fill=FAINT, font=font(_NOTE))
        sheet.paste(Image.fromarray(panel), (left, _TITLE_HEIGHT + _LABEL_HEIGHT))
        left += panel.shape[1] + _GAP
    return np.asarray(sheet)


def draw_episode(
    *,
    query_image: Picture,
    query_mask: NDArray[Any],
    support_images: Picture,
    support_masks: NDArray[Any],
    predictions: Mapping[str, NDArray[Any]],
    maps: Mapping[str, Sequence[NDArray[np.float32]]] | None = None,
    class_name: str = "",
    query_id: str = "",
    support_ids: Sequence[str] = (),
) -> Picture:
    """Draw one episode as a row of panels.

    Args:
        query_image: (H, W, 3) uint8 RGB, input frame.
        query_mask: (H, W) 0/1/255.
        support_images: (K, H, W, 3) uint8 RGB; the first five are drawn.
        support_masks: (K, H, W) 0/1/255.
        predictions: By name (H, W) 0/1; the first is the one that counts, unless these are several methods'.
        maps: By name (h_l, w_l) float32 each, finest first.
        class_name: For the title, as are `query_id` and `support_ids`.
        query_id: Name of the query image.
        support_ids: Names of the K support images.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    size, num_shown = _panel_size(*query_image.shape[:2]), min(len(support_images), _MAX_SUPPORTS)

    def heat(name: str, values: NDArray[np.float32]) -> tuple[str, str, Picture]:
        rows, columns = values.shape
        note = f"{rows}x{columns}, {values.min():.2f} to {values.max():.2f}"
        return name, note, _heat(values, size, query_mask)

    def predicted(name: str, mask: NDArray[Any]) -> tuple[str, str, Picture]:
        panel = with_mask(query_image, mask.astype(np.uint8), PREDICTION, size)
        return name, f"IoU {100 * episode_iou(mask, query_mask):.1f} %", panel

    panels = [
        (
            f"support {k + 1} of {len(support_images)}",
            "mask",
            with_mask(support_images[k], support_masks[k], TRUTH, size),
        )
        for k in range(num_shown)
    ]
    panels.append(("query", "truth", with_mask(query_image, query_mask, TRUTH, size)))
    alone = "prediction" if len(predictions) == 1 else ""
    panels += [predicted(alone or _LABELS.get(name, name), mask) for name, mask in predictions.items()]
    for name, several in (maps or {}).items():
        numbers = [f" {number}" for number in range(1, len(several) + 1)] if len(several) > 1 else [""]
        panels += [heat(f"{name}{number}", values) for number, values in zip(numbers, several, strict=True)]

    title, first = class_name, next(iter(predictions))
    if first == FINAL or alone:  # of methods beside each other none is the one that counts
        title += f"   IoU {100 * episode_iou(predictions[first], query_mask):.1f} %"
    shown = ", ".join(list(support_ids)[:num_shown]) + (" …" if len(support_ids) > num_shown else "")
    return _row(panels, title, f"query {query_id}   support {shown}")


def stack_rows(rows: Sequence[Picture], heading: str = "") -> Picture:
    """Set the rows of several episodes under each other, below a heading and the legend of the colours.

    Args:
        rows: (h, w, 3) uint8 each, widths may differ.
        heading: e.g. "shapes, fold 0, 1-shot, hdmnet: validation, epoch 3".

    Returns:
        (height, width, 3) uint8 RGB.
    """
    top, bold, plain = 40, font(_TITLE, bold=True), font(_NOTE)
    legend = ((TRUTH, "truth, support mask"), (PREDICTION, "prediction"), ((190, 190, 190), "ignored"))
    text_width = round(bold.getlength(heading)) + 30
    width = max([text_width + 460, *(row.shape[1] for row in rows)])
    sheet = Image.new("RGB", (width, top + sum(row.shape[0] for row in rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, top // 2), heading, fill=INK, font=bold, anchor="lm")
    left = text_width
    for colour, name in legend:
        draw.rectangle((left, 13, left + 16, 27), fill=colour, outline=INK)
        draw.text((left + 22, top // 2), name, fill=INK, font=plain, anchor="lm")
        left += 40 + round(plain.getlength(name))
    above = top
    for row in rows:
        sheet.paste(Image.fromarray(row), (0, above))
        above += row.shape[0]
    return np.asarray(sheet)


def _to_uint8(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Picture:
    """Undo the normalisation.

    Args:
        images: (..., 3, H, W) float32 normalised, or uint8 as it is.
        mean: 3 channel means, of images in [0, 1].
        std: 3 channel standard deviations.

    Returns:
        (..., H, W, 3) uint8.
    """
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        scale, shift = (torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1) for values in (std, mean))
        images = ((images.float() * scale + shift) * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(images.movedim(-3, -1).numpy())


def _array(tensor: Tensor) -> NDArray[Any]:
    """A tensor as a NumPy array; half precision as float32."""
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())


def draw_batch_item(
    outputs: Mapping[str, Any],
    item: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    reported: Sequence[str] = (FINAL,),
    episode: Episode | None = None,
) -> Picture:
    """Draw one item of a batch from what the task's step returned.

    Args:
        outputs: `episode` (collated `Episode`, images normalised), `output` (`Segmentation`), `class_names`.
        item: Position in the batch.
        mean: RGB in 0..1, which the pictures were normalised with.
        std: RGB.
        reported: Names of the predictions that are drawn, as a method's attribute of this name.
        episode: The item itself, not collated; None: it is taken from the batch, which must then hold the pictures.

    Returns:
        The row, (height, width, 3) uint8 RGB.
    """
    batch, output = outputs["episode"], outputs["output"]

    def part(name: str) -> Any:
        return getattr(batch, name)[item] if episode is None else getattr(episode, name)

    def predicted(name: str) -> NDArray[Any]:
        if name == FINAL:
            return _array(output.prediction[item])
        return _array(output.logits_of(name)[item].argmax(dim=0))

    return draw_episode(
        query_image=_to_uint8(part("query_image"), mean, std),
        query_mask=_array(part("query_mask")),
        support_images=_to_uint8(part("support_images"), mean, std),
        support_masks=_array(part("support_masks")),
        predictions={name: predicted(name) for name in reported},
        maps={name: [_array(values[item]) for values in several] for name, several in output.maps.items()},
        class_name=outputs["class_names"][int(part("class_index"))],
        query_id=str(part("query_id")),
        support_ids=[str(name) for name in part("support_ids")],
    )


def save_sheet(rows: Sequence[Picture], path: Path, heading: str = "") -> Picture:
    """Stack rows under a heading and write the PNG, whole or not at all.

    Args:
        rows: (h, w, 3) uint8 each.
        path: The file; its folder is made if needed.
        heading: As of `stack_rows`.

    Returns:
        The sheet, (height, width, 3) uint8 RGB.

    Raises:
        OSError: It cannot be written.
    """
    sheet = stack_rows(rows, heading)
    with replacing(path) as temporary:
        Image.fromarray(sheet).save(temporary, format="png")
    return sheet
