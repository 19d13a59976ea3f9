"""Exports a checkpoint to ONNX or torch.export, for pictures of any size, and compares the file's answers with ours.

    python scripts/checkpoints/export.py RUN/checkpoints/best.ckpt cat.onnx --name cat \
        --support cat.jpg:cat.png cat2.jpg:9,5,90,80
    python scripts/checkpoints/export.py cats-and-dogs.pt pets.onnx
    python scripts/checkpoints/export.py RUN/checkpoints/best.ckpt any.onnx --shot 1
    python scripts/checkpoints/export.py official.pth any.pt2 --shot 5 --dataset coco --backbone resnet50_v2

With `--support` (as of `python -m hdmnet.predict`: a mask or a box) the supports become part of the file; in what
`Segmenter.save` or `predict save=` wrote they are already, of one class or of several. With `--shot K` they are inputs.
The name's ending chooses the format: `.onnx` (`pip install 'hdmnet[export]'`) or `.pt2` (torch.export).

| input | |
|---|---|
| `query` | float32 (B, 3, H, W), RGB from 0 to 255: the file normalises by itself |
| `support_images` | with `--shot K`: float32 (B, K, 3, H_s, W_s), likewise |
| `support_masks` | with `--shot K`: uint8 (B, K, H_s, W_s), 1 on the object, 255 ignored |

| output | |
|---|---|
| `logits` | float32 (B, C, 2, H, W), background and foreground of each class; C is 1 with `--shot K` |
| `probability` | float32 (B, C, H, W) of foreground; above 0.5 is the object |

B, H, W, H_s and W_s are free: any height and width from `smallest_side` on, multiples of nothing; K is fixed. With a
backbone of timm's, which pads pictures, `only_size` stands in place of `smallest_side`: H, W. Best is `image_size`,
which the network was trained at. Both, class names, K, mean and std stand in the file: `metadata_props` of ONNX,
`hdmnet.json` of torch.export. Masks are those of `Segmenter.predict` if the picture is resized to `image_size` as it
does it (OpenCV, linear), and the logits back to the picture's size (bilinear, corners aligned) and compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

from network_file import SUFFIXES, TOLERANCE, export  # noqa: E402

from hdmnet.apps.segmenter import Segmenter  # noqa: E402
from hdmnet.apps.supports import parse_supports  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402

NAME = "export"


def load(arguments: argparse.Namespace) -> Segmenter:
    """The checkpoint's network, fitted where there are supports.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged or does not fit.
    """
    size = arguments.image_size
    segmenter = Segmenter.from_checkpoint(
        arguments.ckpt,
        device="cpu",
        dataset=arguments.dataset,
        backbone=arguments.backbone,
        shot=arguments.shot or max(len(arguments.support), 1),
        image_size=size[0] if size is not None and len(size) == 1 else size,
    )
    if arguments.support:
        supports = parse_supports({arguments.name: arguments.support}) or {}
        segmenter.fit({name: tuple(zip(*pairs, strict=True)) for name, pairs in supports.items()})
    elif arguments.shot is None and not segmenter.classes:
        raise ValueError(
            f"{arguments.ckpt} keeps no supports: give --support IMG:MASK …, or --shot K for supports as inputs"
        )
    return segmenter


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ValueError of one line where it is wrong."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path, help="checkpoint of a run, of the release, or a saved fitted segmenter")
    parser.add_argument("output", type=Path, help="file to write: NAME.onnx or NAME.pt2")
    parser.add_argument(
        "--support", nargs="+", default=[], metavar="IMG:MASK", help="supports to fit in, masks or boxes"
    )
    parser.add_argument("--name", default="object", help="class of the supports (default: object)")
    parser.add_argument("--shot", type=int, metavar="K", help="supports as inputs, this many")
    parser.add_argument(
        "--image-size", type=int, nargs="+", metavar="SIDE", help="side, or H W, supports are fitted at"
    )
    parser.add_argument("--dataset", help="of a file of the release: pascal or coco")
    parser.add_argument("--backbone", help="of a file of the release: resnet50_v2 or vgg16")
    arguments = parser.parse_args(argv)
    if arguments.output.suffix not in SUFFIXES:
        parser.error(f"{arguments.output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if arguments.shot is not None and (arguments.shot < 1 or arguments.support):
        parser.error(f"--shot {arguments.shot}: expected at least 1, and no --support beside it")
    if arguments.image_size is not None and len(arguments.image_size) > 2:
        parser.error(f"--image-size {arguments.image_size}: expected one side, or H W")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""

    def body() -> bool:
        arguments = parse(argv)
        written = export(load(arguments), arguments.output, shots=arguments.shot)
        for key, value in written.about.items():
            print(f"{key}: {value}")
        sizes = ", ".join(f"{height}x{width}" for height, width in written.sizes)
        print(f"largest difference from the model: {written.difference:.1e} at {sizes} (at most {TOLERANCE:g})")
        print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    sys.exit(main())
