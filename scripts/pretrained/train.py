"""Train the packaged segmenter (`Segmenter.pretrained`), and test it on classes that it never saw.

    python scripts/pretrained/train.py VOC_TREE FOLDER … --cache /dev/shm/views --out hdmnet/run/pretrained.safetensors
    python scripts/pretrained/train.py VOC_TREE FOLDER … --cache /dev/shm/views --held-out 1 --out held_out.safetensors

Folders are VOC trees, or what `dataset=folder` takes, with the class names of VOC or COCO. Episodes are made of all
their photographs: whole ones, parts (objects larger) and four side by side (objects smaller), each encoded once. With
`--held-out F` every fourth class of COCO, from the one of index F, is left out: its pixels count neither in a query nor
as a support, and the result is tested on episodes of these classes alone.
docs/model_card.md says what was trained by which command, and how well it does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [path for path in (str(ROOT), str(Path(__file__).parent)) if path not in sys.path]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from episodes import Episode, Pool, evaluation_episodes  # noqa: E402
from features import Features  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from photos import CLASSES, crop_views, mosaic_views, read_folder, whole_views  # noqa: E402
from scores import evaluate  # noqa: E402
from torch import Tensor  # noqa: E402

from hdmnet.apps.segmenter_file import compose_predict  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.config.values import to_plain  # noqa: E402
from hdmnet.data.io.arrays import IGNORE  # noqa: E402
from hdmnet.models.correlation.model import Correlation  # noqa: E402
from hdmnet.models.losses import segmentation_loss  # noqa: E402
from hdmnet.models.similarity import QueryUnits, SupportUnits, foreground_share  # noqa: E402
from hdmnet.run.build import build_encoder, build_model  # noqa: E402
from hdmnet.run.pretrained import write_pretrained  # noqa: E402

FOLDS = 4
SHOTS = (1, 1, 1, 2, 5)  # of the training steps, each as likely as the others
SMALL = 0.15  # share of a photograph that is labelled, below which a part of it is taken too


def main(words: Sequence[str] | None = None) -> bool:
    """Train, test if classes are held out, and write the file."""
    arguments = _parse(words)
    torch.manual_seed(arguments.seed)
    config = make_config(arguments.trunk, arguments.side, arguments.untrained_share)
    model = make_model(config)
    backbone = config["backbone"]
    features = Features(arguments.cache, model, json.dumps(backbone), backbone["mean"], backbone["std"])
    photos = [one for root in arguments.folders for one in read_folder(root)]
    views = whole_views(photos, arguments.side)
    labels = features.encode(views)
    if not arguments.whole_only:
        shares = [np.mean((labels[view.name] > 0) & (labels[view.name] < IGNORE)) for view in views]
        small = [photo for photo, share in zip(photos, shares, strict=True) if share < SMALL]
        views += crop_views(small, arguments.side, arguments.seed)
        views += mosaic_views(photos, arguments.side, arguments.seed)
        labels = features.encode(views)
    if arguments.encode_only:
        return True
    held_out = [] if arguments.held_out is None else list(range(arguments.held_out + 1, len(CLASSES) + 1, FOLDS))
    pool = Pool(views, labels, held_out)
    train(model, features, pool, arguments)
    result: dict[str, Any] = {"held_out": [CLASSES[number - 1] for number in held_out]}
    for shots in arguments.test_shots if held_out else ():
        tested = evaluation_episodes(photos, held_out, arguments.episodes, shots, arguments.side, arguments.seed)
        result[f"{shots}-shot"] = evaluate(model, features, tested)
        print(f"{shots}-shot", json.dumps(result[f"{shots}-shot"]), flush=True)
    move_threshold(model, arguments.threshold)
    about = {key: value for key, value in vars(arguments).items() if key not in ("folders", "out", "cache")}
    write_pretrained(
        arguments.out, model, config, {"training": about, **result, "photos": [one.name for one in photos]}
    )
    return True


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="VOC trees, or folders that dataset=folder takes")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--cache", type=Path, required=True, help="folder for features, 3 MB a view; one in memory does best"
    )
    parser.add_argument("--trunk", default="efficientnet_lite2", help="one of conf/backbone")
    parser.add_argument("--side", type=int, default=257, help="pixels, of the square that the trunk sees")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8, help="episodes a step; of five shots half of it")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--dice", type=float, default=0.5, help="weight of the Dice loss beside the cross entropy")
    parser.add_argument(
        "--threshold", type=float, default=0.0, help="in logits, of what is foreground; tests tell of others"
    )
    parser.add_argument("--untrained-share", type=float, default=0.0, help="model.untrained_share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, choices=range(FOLDS), help="leave out these classes and test on them")
    parser.add_argument("--episodes", type=int, default=200, help="of a test")
    parser.add_argument("--test-shots", type=int, nargs="+", default=[1])
    parser.add_argument("--whole-only", action="store_true", help="no parts and mosaics")
    parser.add_argument("--encode-only", action="store_true", help="fill the cache")
    return parser.parse_args(words)


def make_config(trunk: str, side: int, untrained_share: float) -> dict[str, Any]:
    """What `build_pretrained` is to build the network of."""
    words = ["model=correlation", f"backbone={trunk}", f"model.untrained_share={untrained_share}"]
    plain = to_plain(compose_predict(words))
    config = {"model": plain["model"], "backbone": plain["backbone"] | {"weights_dir": None}, "fold": 0, "shot": 1}
    return config | {"dataset": {"name": "none", "image_size": [side, side]}}


def make_model(config: Mapping[str, Any]) -> Correlation:
    """The network, its heads random."""
    cfg = OmegaConf.create(dict(config))
    model = build_model(cfg, build_encoder(cfg, num_base=0))
    assert isinstance(model, Correlation)
    return model


def train(model: Correlation, features: Features, pool: Pool, arguments: argparse.Namespace) -> None:
    """Fit the heads; leaves the model in evaluation mode."""
    learn = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learn, arguments.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, arguments.lr, total_steps=arguments.steps)
    model.train()
    rng = np.random.default_rng(arguments.seed)
    began, losses = time.process_time(), []
    for step in range(1, arguments.steps + 1):
        shots = int(rng.choice(SHOTS))
        batch = pool.draw(rng, arguments.batch if shots < max(SHOTS) else arguments.batch // 2, shots)
        query, support, truth = load_batch(features, pool, batch, arguments.side)
        if rng.random() < 0.5:  # of the correlations a flip asks for no other features
            query, truth = QueryUnits(query.units.flip(-1), query.size), truth.flip(-1)
        output = model.match(query, support, shots=shots)
        predictions = [output.logits, *output.auxiliary_logits.values()]
        loss = torch.stack([loss_of(one, truth, arguments.dice) for one in predictions]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if step % 20 == 0:
            used = time.process_time() - began
            print(f"step {step} loss {np.mean(losses[-50:]):.3f}, {used:.0f} CPU s", flush=True)
    model.eval()


def loss_of(logits: Tensor, truth: Tensor, dice: float) -> Tensor:
    """Cross entropy, and weighted `dice` the mean Dice loss of the episodes, in which small objects count as much.

    Args:
        logits: (B, 2, S, S) float.
        truth: (B, S, S) uint8, 0/1/255.
        dice: The weight.
    """
    counted = truth != IGNORE
    foreground = logits.softmax(1)[:, 1] * counted
    both = (foreground * (truth == 1)).sum((1, 2))
    sizes = foreground.sum((1, 2)) + (truth == 1).sum((1, 2))
    return segmentation_loss(logits, truth) + dice * (1 - 2 * both / (sizes + 1)).mean()


def load_batch(
    features: Features, pool: Pool, batch: Sequence[Episode], side: int
) -> tuple[QueryUnits, SupportUnits, Tensor]:
    """Encoded queries (B), supports (B·K), and truth (B, S, S) uint8 0/1/255."""
    units = features.load([one.query for one in batch])
    truth = torch.stack([pool.mask(one.query, one.number) for one in batch])
    names = [(name, one.number) for one in batch for name in one.supports]
    support_units = features.load([name for name, _ in names])
    masks = torch.stack([pool.mask(name, number) for name, number in names])
    support = SupportUnits(support_units, foreground_share(masks, (units.shape[2], units.shape[3])))
    return QueryUnits(units, (side, side)), support, truth


def move_threshold(model: Correlation, threshold: float) -> None:
    """Make 0 the threshold where it was another one, in logits of foreground less those of background."""
    head = model.first if model.second is None else model.second
    assert head.classify.bias is not None
    with torch.no_grad():
        head.classify.bias[1] -= threshold


if __name__ == "__main__":
    sys.exit(run_main(main, "train"))
