"""How many training steps of each method fit into the same processor time: `optim.steps` of a sweep that compares them.

    python scripts/benchmarks/step_costs.py sweep=compare_voc                    # every method that learns
    python scripts/benchmarks/step_costs.py sweep=compare_voc --methods hsnet bam --seconds 90

Words are those of `hdmnet.train`. A step is timed as the training takes it, pictures read and augmented in this
process, on weights of no meaning; the median of some steps, in processor time of one process, is what counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lightning import Fabric

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

from hdmnet.cli.compose import compose_words  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.config.paths import conf_dirs, make_paths_absolute  # noqa: E402
from hdmnet.config.schemas import register_schemas  # noqa: E402
from hdmnet.run import build  # noqa: E402

NAME = "step_costs"


def time_steps(words: Sequence[str], method: str, repeats: int) -> float | None:
    """Median processor seconds of a training step; None of a method that has nothing to learn."""
    cfg = compose_words("train", [*words, f"model={method}", "optim.max_steps=1000", "num_workers=0"])
    with tempfile.TemporaryDirectory() as folder:
        make_paths_absolute(cfg, folder)
        if not build.learns(cfg):
            return None
        data = build.build_few_shot_data(cfg, build.build_dataset(cfg))
        data.setup("fit")
        model = build.build_model(cfg, build.build_encoder(cfg, data.num_base, weights=None)).train()
        task = build.build_task(cfg, model, data)
        assert task.loss is not None
        assert task.make_optimizer is not None
        optimizer = task.make_optimizer(model.parameter_groups(**task.groups))
        autocast = Fabric(accelerator="cpu", precision=cfg.trainer.get("precision")).autocast
        seconds, start = [], time.process_time()
        for number, batch in enumerate(data.train_dataloader()):
            batch = data.on_after_batch_transfer(batch, 0)
            optimizer.zero_grad()
            with autocast():
                loss = task.loss(task(batch, class_index=batch.class_index), batch.query_mask)["loss"]
            loss.backward()
            optimizer.step()
            seconds.append(time.process_time() - start)
            if number == repeats:
                break
            start = time.process_time()
    return statistics.median(seconds[1:])  # the first prepares what is kept


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code.
    """
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="of hdmnet.train")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="(default: all of conf/model)")
    parser.add_argument("--seconds", type=float, default=90.0, help="processor time of a training (default: 90)")
    parser.add_argument("--repeats", type=int, default=6, help="steps that are timed (default: 6)")

    def body() -> bool:
        arguments = parser.parse_args(argv)
        register_schemas()
        known = sorted({file.stem for folder in conf_dirs() for file in (folder / "model").glob("*.yaml")})
        steps = []
        for method in arguments.methods or known:
            seconds = time_steps(arguments.words, method, arguments.repeats)
            number = 1 if seconds is None else max(1, round(arguments.seconds / seconds))
            steps.append(f"{method}: {number}")
            told = "nothing to learn" if seconds is None else f"{seconds:.3f} s a step"
            print(f"{NAME}: {method}: {told}", file=sys.stderr, flush=True)
        print(f"steps: {{{', '.join(steps)}}}")
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
