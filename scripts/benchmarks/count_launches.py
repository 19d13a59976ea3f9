"""What a step asks of a GPU, counted without one: kernels, copies, casts, and where the host waits for the device.

    python scripts/benchmarks/count_launches.py [key=value ...]      # keys of python -m hdmnet.train
    python scripts/benchmarks/count_launches.py backbone=resnet50 dataset.image_size=473 trainer.precision=bf16-mixed

Training and evaluation run through Lightning, callbacks and all, on a device of the script's own: its tensors say that
they are on no CPU, so that the code takes the ways it takes on a GPU, and are computed on the CPU. Every operation is
seen. One that only looks at memory otherwise (a view) starts no kernel; each other counts as one, though torch starts
several for some: compare counts with counts of this script only. The host waits where a value is read (`item`,
`tolist`, `cpu`), where a size depends on values (`nonzero`, masks as indices, `bincount`), and where a copy to the
device is not asynchronous. The second step is counted: the first one folds weights and fills constants.
"""

from __future__ import annotations

import argparse
import json
import logging
import operator
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)] if str(ROOT) not in sys.path else []

import lightning as L  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from lightning.pytorch.accelerators import Accelerator  # noqa: E402
from lightning.pytorch.plugins import MixedPrecision  # noqa: E402
from lightning.pytorch.strategies import SingleDeviceStrategy  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.optim import optimizer  # noqa: E402
from torch.utils import _foreach_utils  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend  # noqa: E402

from hdmnet.callbacks.build import build_callbacks  # noqa: E402
from hdmnet.callbacks.non_finite import _Verdict  # noqa: E402
from hdmnet.cli.parser import OneLineParser, run_main  # noqa: E402
from hdmnet.config.checks import validate  # noqa: E402
from hdmnet.config.paths import HYDRA_VERSION_BASE, conf_dir, make_paths_absolute  # noqa: E402
from hdmnet.config.schemas import register_schemas  # noqa: E402
from hdmnet.data.types import Episode  # noqa: E402
from hdmnet.loggers.build import build_loggers  # noqa: E402
from hdmnet.models.method import FewShotMethod, encodes_apart  # noqa: E402
from hdmnet.run.build import (  # noqa: E402
    build_dataset,
    build_encoder,
    build_few_shot_data,
    build_model,
    build_task,
    build_trainer,
)
from hdmnet.runtime.warnings import silence_known_warnings  # noqa: E402

NAME = "count_launches"
DEVICE = "pretended"
STEPS = 2  # the last of them is counted
KINDS = ("kernels", "casts", "copies", "waits")
# Their size depends on values, or they ask the device for its largest value first.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "equal", "is_nonzero"}
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


# Of torch's lists for CUDA (ATen/autocast_mode.h), what is called here.
_LOWER = [
    "conv2d.default",
    "linear.default",
    "matmul.default",
    "mm.default",
    "bmm.default",
    "addmm.default",
    "baddbmm.default",
]
_FLOAT32 = [
    "layer_norm.default",
    "softmax.int",
    "log_softmax.int",
    "cross_entropy_loss.default",
    "exp.default",
    "log.default",
]
_FLOAT32 += [
    "rsqrt.default",
    "pow.Tensor_Scalar",
    "norm.ScalarOpt_dim",
    "sum.default",
    "sum.dim_IntList",
    "cumsum.default",
]
_WIDEST = ["cat.default", "stack.default"]
_LIBRARY = torch.library.Library("aten", "IMPL")
_OTHERS = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_CAST: dict[int, Tensor] = {}  # weights in 16 bits, until the step ends


@dataclass
class Counts:
    """What was seen since `clear`, by kind: how often, and from which line of ours."""

    seen: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})

    def add(self, kind: str, op: str) -> None:
        """Count an operation."""
        self.seen[kind][f"{op} {_line()}"] += 1

    def clear(self) -> None:
        """Begin anew."""
        for counter in self.seen.values():
            counter.clear()
        _CAST.clear()


COUNTS = Counts()


def _line() -> str:
    """The innermost line of the package, else of Lightning or the optimiser, that the running operation comes from."""
    other = "the backward pass"
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT / "hdmnet") and "cli" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
        if other == "the backward pass" and {"lightning", "optim"} & {*path.parts}:
            other = f"{'/'.join(path.parts[-3:])}:{frame.lineno}"
        if path.name in ("parser.py", "graph.py"):
            break
    return other


class DeviceTensor(Tensor):
    """A tensor that says it lies on the pretended device; `held` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[DeviceTensor], real: Tensor) -> DeviceTensor:
        """A tensor of the values of another one, on the CPU."""
        made = Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=torch.device(DEVICE, 0), requires_grad=False,
        )  # fmt: skip
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return compute(func, args, kwargs or {})

    def __deepcopy__(self, memo: Any) -> Any:
        made: Tensor = type(self)(self.held.clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        return memo.setdefault(id(self), torch.nn.Parameter(made, self.requires_grad) if is_parameter else made)

    def tolist(self) -> Any:
        """The values, which are waited for."""
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        """Of the values."""
        return self.held.data_ptr()


class Seen(TorchDispatchMode):
    """Makes what is created on the device, and copied to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and count it where it is one of the device's."""
    inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    on_device = any(isinstance(x, DeviceTensor) for x in inputs)
    device = kwargs.get("device")
    target = torch.device(device).type if device is not None else None
    if not on_device and target != DEVICE:
        return func(*args, **kwargs)
    count(func, args, kwargs, inputs, target)
    real_args, real = tree_map_only(DeviceTensor, lambda x: x.held, (args, dict(kwargs)))
    if target == DEVICE:
        real["device"] = "cpu"
    out = func(*real_args, **real)
    if not func._schema.returns or target == "cpu" or func is torch.ops.aten._local_scalar_dense.default:
        return out
    if func._schema.is_mutable and not isinstance(args[0] if args else None, DeviceTensor):
        return args[0]  # a copy from the device into a tensor of the host
    out = tree_map_only(Tensor, DeviceTensor, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if on_device else out


def count(func: Any, args: Any, kwargs: dict[str, Any], inputs: Sequence[Tensor], target: str | None) -> None:
    """Sort an operation that concerns the device into kernels, casts, copies and waits."""
    op = func.overloadpacket.__name__
    if func.namespace != "aten" or op in _NO_KERNEL or _is_view(func):
        return
    if op == "_to_copy" or op == "copy_":
        source = inputs[-1]
        goes_to = target or ("cpu" if op == "copy_" and not isinstance(inputs[0], DeviceTensor) else DEVICE)
        to_host, from_host = goes_to == "cpu", not isinstance(source, DeviceTensor)
        if to_host or from_host:
            COUNTS.add("copies", "to the host" if to_host else "to the device")
            if not kwargs.get("non_blocking", args[2] if op == "copy_" and len(args) > 2 else False):
                COUNTS.add("waits", "copy to the host" if to_host else "copy to the device")
            return
        if kwargs.get("dtype") not in (None, source.dtype):
            COUNTS.add("casts", op)
    indices = inputs[1:] if op in ("index", "index_put", "index_put_") else ()
    if op in _WAITS or any(x.dtype in (torch.bool, torch.uint8) for x in indices):
        COUNTS.add("waits", op)
    COUNTS.add("kernels", op)


def _is_view(func: Any) -> bool:
    returned = [one.alias_info for one in func._schema.returns]
    return any(info is not None and not info.is_write for info in returned)


def imitate_autocast() -> None:
    """What autocast does on CUDA: casts before products, weights once a step; back where 16 bits lose too much."""
    here = cast(Any, torch._C.DispatchKey).AutocastPrivateUse1
    _OTHERS.fallback(torch.library.fallthrough_kernel)
    for names, dtype in ((_LOWER, None), (_FLOAT32, torch.float32), (_WIDEST, torch.float32)):
        for name in names:
            overload = operator.attrgetter(name)(torch.ops.aten)

            run = partial(_run_cast, overload, dtype, names is _WIDEST, torch._C.DispatchKeySet(here))
            _LIBRARY.impl(overload, run, "AutocastPrivateUse1")


def _run_cast(overload: Any, dtype: torch.dtype | None, widest: bool, keys: Any, *args: Any, **kwargs: Any) -> Any:
    held = [x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    wanted = torch.get_autocast_dtype(DEVICE) if dtype is None else dtype
    with torch._C._ExcludeDispatchKeyGuard(keys):
        if not widest or torch.float32 in held:
            args, kwargs = tree_map_only(Tensor, partial(_cast, dtype=wanted), (args, kwargs))
        return overload(*args, **kwargs)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    if not x.is_floating_point() or x.dtype in (dtype, torch.float64):
        return x
    if not (x.is_leaf and x.requires_grad) or x._is_view():
        return x.to(dtype)
    if id(x) not in _CAST:
        _CAST[id(x)] = x.to(dtype)
    return _CAST[id(x)]


class FusedAttention(torch.autograd.Function):
    """Attention as CUDA has it: one kernel forward, one backward."""

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], mask: Tensor | None, *inputs: Tensor) -> Tensor:
        """As `scaled_dot_product_attention` of q, k and v."""
        COUNTS.add("kernels", "scaled_dot_product_attention")
        ctx.inputs = [cast(DeviceTensor, x.detach()).held.requires_grad_() for x in inputs]
        held = mask.held if isinstance(mask, DeviceTensor) else mask
        with torch.enable_grad():
            ctx.output = cast(Any, _attend)(*ctx.inputs, held, **options)
        return DeviceTensor(ctx.output.detach())

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Gradients of q, k and v."""
        COUNTS.add("kernels", "scaled_dot_product_attention backward")
        return None, None, *map(DeviceTensor, torch.autograd.grad(ctx.output, ctx.inputs, grad.held))


_attend = F.scaled_dot_product_attention


def fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Any:
    """In place of torch's, which would fall back to the plain products."""
    if not isinstance(q, DeviceTensor):
        return _attend(q, k, v, attn_mask, **options)
    if torch.is_autocast_enabled(DEVICE):
        q, k, v = (x.to(torch.get_autocast_dtype(DEVICE)) for x in (q, k, v))
    return FusedAttention.apply(options, attn_mask, q, k, v)


class Backend(_DummyBackendModule):
    """What torch asks a kind of device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Precisions of autocast."""
        return [torch.bfloat16, torch.float16]


class PretendedGPU(Accelerator):
    """The device, for Lightning."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""

    def teardown(self) -> None:
        """Nothing to leave."""

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        """As given."""
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        """The one that there is."""
        return [torch.device(DEVICE, 0)]

    @staticmethod
    def auto_device_count() -> int:
        """One."""
        return 1

    @staticmethod
    def is_available() -> bool:
        """Always."""
        return True

    @staticmethod
    def name() -> str:
        """Of the device."""
        return DEVICE


class Watch(L.Callback):
    """Begins to count at the last step, and keeps what the step counted: from one batch's start to the next one's."""

    def __init__(self) -> None:
        self.counted: dict[str, dict[str, Counter[str]]] = {}
        self._batch = 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Count the steps of the training."""
        self._next("training step")

    def on_validation_batch_start(self, *_: Any) -> None:
        """Count the steps of the validation."""
        self._next("evaluation step")

    def on_train_start(self, *_: Any) -> None:
        """Begin with the first step."""
        self._batch = 0

    def on_validation_start(self, *_: Any) -> None:
        """Begin with the first step."""
        self._batch = 0

    def _next(self, name: str) -> None:
        self._batch += 1
        if self._batch > STEPS:
            self.counted[name] = {kind: Counter(counter) for kind, counter in COUNTS.seen.items()}
        COUNTS.clear()


def compare(model: FewShotMethod, episode: Episode, device: torch.device) -> dict[str, float]:
    """How far the device's answers are from the CPU's: largest relative difference of the logits, without autocast.

    Of the forward pass, and of the parts that an evaluation calls; `episode` is on the CPU, its pictures still uint8.
    """
    masks = episode.support_masks
    found = []
    for where in (torch.device("cpu"), device):
        model = model.to(where).eval()
        query, supports = (x.to(where).float() / 64 - 2 for x in (episode.query_image, episode.support_images))
        given = masks if model.takes_host_masks else masks.to(where)
        apart = encodes_apart(model)
        with torch.no_grad():
            outputs = [
                model(query, supports, given),
                model(query, supports, masks.to(where)),
                apart.match(
                    apart.encode_query(query),
                    apart.encode_support(supports.flatten(0, 1), given.flatten(0, 1)),
                    shots=masks.shape[1],
                ),
            ]
        found.append([output.logits.cpu() for output in outputs])
    names = ("forward", "forward, masks on the device", "encoded apart")
    pairs = zip(names, *found, strict=True)
    return {name: float((ours - on_cpu).abs().max() / on_cpu.abs().max()) for name, on_cpu, ours in pairs}


def measure(
    overrides: Sequence[str], folder: str, *, compares: bool
) -> tuple[dict[str, dict[str, Counter[str]]], dict[str, float]]:
    """Train and evaluate a few steps.

    Args:
        overrides: Keys of `hdmnet.train`.
        folder: For what the run writes.
        compares: Whether to compare the answers with a CPU's.

    Returns:
        By step and kind, how often each operation was seen, by name and line; and what `compare` found.
    """
    register_schemas()
    given = [f"trainer.max_steps={STEPS + 1}", f"trainer.limit_val_batches={STEPS + 1}", "num_workers=0"]
    given += ["dataset.num_train=200", "dataset.num_val=100", "backbone.weights=null"]
    given += ["trainer.enable_progress_bar=false", *overrides]
    with initialize_config_dir(config_dir=str(conf_dir()), version_base=HYDRA_VERSION_BASE):
        cfg = compose("train", overrides=given)
    make_paths_absolute(cfg, folder)
    validate(cfg)
    data = build_few_shot_data(cfg, build_dataset(cfg))
    data.setup()
    data.episodes_per_epoch = (STEPS + 1) * data.batch_size  # a validation follows
    L.seed_everything(0, verbose=False)
    task = build_task(cfg, build_model(cfg, build_encoder(cfg, data.num_base, weights=None)), data)
    watch = Watch()
    kept = [one for one in build_callbacks(cfg, "train") if type(one).__name__ in ("NonFiniteGuard", "Throughput")]
    strategy = SingleDeviceStrategy(torch.device(DEVICE, 0), accelerator=PretendedGPU())
    precision = cfg.trainer.precision
    plugins = None if precision is None else [MixedPrecision(precision, device=DEVICE)]
    trainer = build_trainer(
        cfg, "stage 2", callbacks=[*kept, watch], logger=build_loggers(cfg, "train"), strategy=strategy,
        accelerator="auto", precision=None, plugins=plugins, enable_checkpointing=False, log_every_n_steps=50,
    )  # fmt: skip
    read = _Verdict.read

    def read_and_count(verdict: _Verdict) -> list[int]:
        if verdict.where["step"] == trainer.global_step:  # at once: it waits for an event, which no operation shows
            COUNTS.add("waits", "verdict of the finite guard")
        return read(verdict)

    with mock.patch.object(_Verdict, "read", read_and_count), Seen():  # type: ignore[no-untyped-call]
        trainer.fit(task, datamodule=data)
        episode = next(iter(data.train_dataloader()))
        return watch.counted, compare(task.model, episode, strategy.root_device) if compares else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script.

    Args:
        argv: Command line without the program's name; None = the process's own.

    Returns:
        Exit code.
    """
    parser = OneLineParser(prog=NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of python -m hdmnet.train")
    parser.add_argument("--compare", action="store_true", help="also compare the answers with a CPU's")
    parser.add_argument("--json", type=Path, help="also write all counts to this file")
    parser.add_argument("--lines", type=int, default=0, help="show this many lines that start most kernels")

    def body() -> bool:
        arguments = parser.parse_args(argv)
        silence_known_warnings()
        warnings.filterwarnings("ignore")
        logging.getLogger("lightning").setLevel(logging.ERROR)
        _setup_privateuseone_for_python_backend(DEVICE, backend_module=Backend())
        # Optimisers and norms take all tensors at once, as on a GPU.
        for known in (_foreach_utils._foreach_supported_types, optimizer._foreach_supported_types):
            cast(Any, known).append(DeviceTensor)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # `data = …` would leave `held` as it is
        cast(Any, F).scaled_dot_product_attention = fused_attention
        imitate_autocast()
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=…) shows its copy
        with tempfile.TemporaryDirectory() as folder:
            counted, differences = measure(arguments.overrides, folder, compares=arguments.compare)
        print(f"| | {' | '.join(KINDS)} |\n|{'---|' * (1 + len(KINDS))}")
        for name, kinds in counted.items():
            print(f"| {name} | {' | '.join(str(sum(kinds[kind].values())) for kind in KINDS)} |")
        for name, kinds in counted.items():
            for what, number in sorted(kinds["waits"].items()):
                print(f"{name} waits {number} times: {what}")
            for what, number in kinds["kernels"].most_common(arguments.lines):
                print(f"{name}: {number} of {what}")
        for name, value in differences.items():
            print(f"largest relative difference of the logits from a CPU's: {value:.1e} ({name})")
        if arguments.json:
            arguments.json.write_text(json.dumps({"counted": counted, "differences": differences}, indent=1))
        return True

    return run_main(body, NAME)


if __name__ == "__main__":
    raise SystemExit(main())
