"""What a training step and an evaluation cost of methods whose trunk learns, beside a plain form; a Markdown table.

    python scripts/benchmarks/benchmark_trained_trunks.py ssp panet
    python scripts/benchmarks/benchmark_trained_trunks.py ssp --side 241 --shot 5 --repeats 5 --threads 1

An evaluation is one episode, a training step one episode with loss and gradients. The plain form has the same weights
and computes the paper's formulas as they stand: SSP's trunk with batch normalisation, and the adaptive prototypes of
both classes; PANet's features upsampled to the pictures' size. Both must give the same logits and loss to 1e-3.
Seconds are medians of processor time, in turns; memory is the growth of the peak of the resident memory over one call,
in a process of its own, beyond weights, inputs and libraries.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(folder) for folder in (ROOT, ROOT / "scripts" / "benchmarks") if str(folder) not in sys.path]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from benchmark_measure import MALLOC, machine, measure_call  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.models.class_prototypes import ClassPrototypes, QueryMap  # noqa: E402
from hdmnet.models.method import FewShotMethod  # noqa: E402
from hdmnet.models.panet import official as panet  # noqa: E402
from hdmnet.models.panet.loss import PANetLoss  # noqa: E402
from hdmnet.models.panet.model import PANet  # noqa: E402
from hdmnet.models.ssp import official as ssp  # noqa: E402
from hdmnet.models.ssp import self_support as ssp_parts  # noqa: E402
from hdmnet.models.ssp.loss import SSPLoss  # noqa: E402
from hdmnet.models.ssp.model import SSP, SSPSegmentation  # noqa: E402

NAME = "benchmark_trained_trunks"
TOLERANCE = 1e-3  # of logits and loss of the two forms
SMALL_SIDE = 65  # in pixels: of the call that loads the libraries


class PlainSSP(SSP):
    """With batch normalisation as layers, and both classes' adaptive prototypes."""

    def __init__(self, model: SSP) -> None:
        super().__init__(encoder=model.backbone, refine=model.refine)
        self.trunk = self.backbone

    def match(self, query: QueryMap, support: ClassPrototypes, *, shots: int) -> SSPSegmentation:
        """As `SSP.match`."""
        own = ssp_parts.adaptive_background

        def both(rows: Tensor, units: Tensor, chosen: Tensor) -> Tensor:
            own(rows, units, ~chosen | (torch.arange(chosen.shape[1]) < ssp_parts.FEWEST))  # thrown away, as there
            return own(rows, units, chosen)

        ssp_parts.adaptive_background = both
        try:
            return super().match(query, support, shots=shots)
        finally:
            ssp_parts.adaptive_background = own


class PlainPANet(PANet):
    """With features upsampled to the pictures' size."""

    def __init__(self, model: PANet) -> None:
        super().__init__(encoder=model.backbone)

    def pool(self, features: Tensor, masks: Tensor) -> Tensor:
        """As `PANet.pool`, by the formula; one support and class after the other, as there."""
        vectors = []
        for feature, mask in zip(features.split(1), masks, strict=True):
            for chosen in (mask != 1, mask == 1):
                large = F.interpolate(feature, mask.shape, mode="bilinear", align_corners=False)
                vectors.append((large * chosen).sum((2, 3)) / (chosen.sum() + 1e-5))
        return torch.unflatten(torch.cat(vectors), 0, (-1, 2))


Forms = tuple[FewShotMethod, FewShotMethod]
METHODS: dict[str, tuple[Callable[[], Forms], type[nn.Module], int]] = {  # forms, loss, the release's side
    "ssp": (lambda: _two(ssp.build_official("pascal", "resnet50_v2"), PlainSSP), SSPLoss, 473),
    "panet": (lambda: _two(panet.build_official("pascal", "vgg16_plain"), PlainPANet), PANetLoss, 417),
}


def _two(model: FewShotMethod, plain: Callable[..., FewShotMethod]) -> Forms:
    """The method and its plain form, on weights of its own in torch's own layout."""
    other = plain(copy.deepcopy(model)).to(memory_format=torch.contiguous_format)
    return model, other


def prepare(name: str, form: str, mode: str, side: int, shots: int) -> Callable[[], Tensor]:
    """A call of "ours" or "plain" in "evaluation" (gives the logits) or "training" (the loss)."""
    torch.manual_seed(0)
    build, loss_class, _ = METHODS[name]
    model = build()[form == "plain"].train(mode == "training")
    loss = loss_class()
    query, supports = torch.randn(1, 3, side, side), torch.randn(1, shots, 3, side, side)
    masks = torch.zeros(1, shots, side, side, dtype=torch.uint8)
    masks[..., side // 4 : side // 4 + round(0.45 * side), side // 4 : side // 4 + round(0.45 * side)] = 1

    def evaluate() -> Tensor:
        with torch.inference_mode():
            logits: Tensor = model(query, supports, masks).logits
        return logits

    def train() -> Tensor:
        model.zero_grad()
        total: Tensor = loss(model(query, supports, masks), masks[:, 0])["loss"]
        total.backward()
        return total.detach()

    return evaluate if mode == "evaluation" else train


def memory_apart(words: Sequence[str]) -> float:
    """Growth of the peak memory of one call in 10^6 bytes, in a fresh process.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, __file__, *words, "--memory"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | MALLOC, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {words} failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def measure(name: str, mode: str, side: int, shots: int, repeats: int) -> str:
    """A row of the table.

    Raises:
        ValueError: The two forms differ.
    """
    calls = {form: prepare(name, form, mode, side, shots) for form in ("ours", "plain")}
    ours, plain = (call() for call in calls.values())
    difference = (ours - plain).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(f"{name}, {mode}: the two forms differ by {difference:.1e}; expected at most {TOLERANCE:g}")
    times: dict[str, list[float]] = {form: [] for form in calls}
    for turn in range(repeats):
        print(f"{NAME}: {name}, {mode}, turn {turn + 1} of {repeats}", file=sys.stderr, flush=True)
        for form, call in calls.items():
            start = time.process_time()
            call()
            times[form].append(time.process_time() - start)
    seconds = {form: statistics.median(values) for form, values in times.items()}
    common = ["--side", str(side), "--shot", str(shots), "--threads", str(torch.get_num_threads()), "--mode", mode]
    megabytes = {form: memory_apart([name, *common, "--form", form]) for form in calls}
    return (
        f"| `{name}` | {mode} | {side} | {shots} | {seconds['ours']:.2f} s | {seconds['plain']:.2f} s | "
        f"{seconds['ours'] / seconds['plain']:.2f} | {megabytes['ours']:.0f} MB | {megabytes['plain']:.0f} MB | "
        f"{difference:.0e} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code."""
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="METHOD", choices=list(METHODS), help=" or ".join(METHODS))
    parser.add_argument("--side", type=int, help="of the pictures, in pixels (default: the release's)")
    parser.add_argument("--shot", type=int, default=1, help="K (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--mode", choices=("evaluation", "training"), help="only this one")
    parser.add_argument("--form", default="ours", choices=("ours", "plain"), help="with --memory")
    parser.add_argument("--memory", action="store_true", help="only the peak memory of METHOD in MODE, as JSON")

    def body() -> bool:
        arguments = parser.parse_args(argv)
        torch.set_num_threads(arguments.threads)
        modes = ["evaluation", "training"] if arguments.mode is None else [arguments.mode]
        if arguments.memory:
            name, side = arguments.names[0], arguments.side or METHODS[arguments.names[0]][2]
            prepare(name, arguments.form, modes[0], SMALL_SIDE, arguments.shot)()  # libraries are loaded
            print(json.dumps(measure_call(prepare(name, arguments.form, modes[0], side, arguments.shot), "cpu").extra))
            return True
        about = machine()
        print(f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, load {about['load']}; float32\n")
        print("| method | mode | side | K | ours | plain | ours / plain | memory | plain | difference |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for name in arguments.names:
            for mode in modes:
                side = arguments.side or METHODS[name][2]
                print(measure(name, mode, side, arguments.shot, arguments.repeats), flush=True)
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    sys.exit(main())
