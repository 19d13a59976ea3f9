"""Parameters and floating-point operations of HDMNet for 1 to 4 matching stages, beside the paper's Table 7.

    python scripts/benchmarks/count_costs.py [--image-size 473] [--shot 1] [--foreground 0.2]

Operations are counted by torch while the model runs on random input; one multiplication with its addition counts as one
(the convention of the papers' tables), so these are half of what torch calls FLOPs. The release computes every support
position and discards the background afterwards; ours computes the foreground only, so the matching's share depends on
it. "layers" are convolutions and linear layers alone, without the products of attention and matching: tools that count
by module see only these.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hdmnet.cli.parser import OneLineParser, run_main
from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.model import HDMNet, build_hdmnet

NAME = "count_costs"
PAPER = {1: (1.3, 15.1, 8.8), 2: (2.1, 21.1, 10.2), 3: (2.8, 27.4, 10.6), 4: (3.6, 38.0, 10.6)}


def count(module: nn.Module) -> float:
    """Millions of parameters of a module."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def measure(model: HDMNet, size: int, shot: int, foreground: float) -> dict[str, float]:
    """Run the meta learner once.

    Args:
        model: With ResNet-50.
        size: Side of the input in pixels.
        shot: K.
        foreground: Share of foreground in the support masks.

    Returns:
        Billions of multiply-adds by part (embed, pyramid, matching, decoder), their sum, and that of layers alone.
    """
    side = -(-size // 8)
    meta = model.meta_learner
    layer2, layer3 = (torch.randn(1 + shot, channels, side, side) for channels in (512, 1024))
    mask = torch.zeros(shot, size, size)
    mask[:, : round(foreground * size)] = 1
    prior = torch.rand(1, 2, side, side)
    counter = FlopCounterMode(display=False)
    found: dict[str, float] = {}

    def count_in(part: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        before = counter.get_total_flops()
        result = function(*args, **kwargs)
        found[part] = found.get(part, 0.0) + counter.get_total_flops() - before
        return result

    with torch.no_grad(), counter:
        reduced = count_in("embed", meta.reduce_support, layer3[1:], layer2[1:])
        merged, prototypes = count_in("embed", meta.embed_support, reduced, mask)
        share = count_in("embed", lambda: meta.query_share(meta.reduce_query(layer3[:1], layer2[:1])))
        query = count_in("embed", meta.embed_query, share, prototypes[None], prior)
        stages = count_in("pyramid", meta.support_stages, merged, mask)
        queries = count_in("pyramid", meta.pyramid, query)
        matched = [
            count_in("matching", matching.match, q, s, prior, shots=shot)[0]  # type: ignore[arg-type]
            for matching, q, s in zip(meta.matching, queries, stages, strict=True)
        ]
        count_in("decoder", meta.decoder, matched)
    operations = counter.get_flop_counts()["Global"]
    found["sum"] = sum(operations.values())
    found["layers"] = sum(
        n for op, n in operations.items() if not any(word in str(op) for word in ("bmm", "attention"))
    )
    return {name: flops / 2e9 for name, flops in found.items()}


def trunk_operations(learner: BaseLearner, size: int) -> float:
    """Billions of multiply-adds of the frozen trunk for one picture; no memory, so any size."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        learner(_empty(1, 3, size, size))
    total: int = counter.get_total_flops()
    return total / 2e9


def _empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def print_table(size: int, shot: int, foreground: float) -> None:
    """Print the table as Markdown."""
    with torch.device("meta"):
        learner = BaseLearner(backbone=build_backbone("resnet50_v2"), num_base=60)
        models = {stages: build_hdmnet(learner, num_shots=shot, num_stages=stages).eval() for stages in PAPER}
    learner = models[1].trunk.base_learner
    print(
        f"{size}x{size}, {shot} shot(s), {foreground:.0%} foreground; "
        f"trunk {trunk_operations(learner, size):.1f} G a picture"
    )
    heads = ["stages", "paper M", "transformer M", "learnable M", "paper G", "embed G", "pyramid G", "matching G"]
    heads += ["decoder G", "sum G", "layers G"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for stages, model in models.items():
        meta = model.meta_learner.to_empty(device="cpu")
        for parameter in meta.parameters():
            nn.init.normal_(parameter, std=0.05)
        transformer = count(meta.pyramid) + count(meta.matching) + count(meta.decoder)
        learnable = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
        values = [f"{value:.2f}" for value in measure(model, size, shot, foreground).values()]
        millions, _, giga = PAPER[stages]
        print(f"| {stages} | {millions} | {transformer:.2f} | {learnable:.2f} | {giga} | {' | '.join(values)} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code.
    """
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=473, help="side in pixels (default: 473)")
    parser.add_argument("--shot", type=int, default=1, help="supports (default: 1)")
    parser.add_argument(
        "--foreground", type=float, default=1.0, help="share of foreground in the supports (default: 1)"
    )

    def body() -> bool:
        arguments = parser.parse_args(argv)
        print_table(arguments.image_size, arguments.shot, arguments.foreground)
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
