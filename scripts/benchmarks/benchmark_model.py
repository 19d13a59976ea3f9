"""Sections of the benchmark on the networks: matching, model, trunk, growth. Only torch and torchvision are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from benchmark_dense import DenseHDMNet, dense_matching
from benchmark_measure import Context, Memory, Row, interleave, measure_call, peak_memory, relative_difference
from torch import Tensor, nn

from hdmnet.models.backbones.build import build_backbone
from hdmnet.models.base_learner import BaseLearner
from hdmnet.models.hdmnet.loss import correlation_distillation
from hdmnet.models.hdmnet.matching import CorrelationMatching
from hdmnet.models.hdmnet.model import HDMNet, build_hdmnet
from hdmnet.models.losses import segmentation_loss
from hdmnet.models.trunk import FrozenTrunk, TrunkFeatures

CHANNELS, HEADS, TEMPERATURE, NUM_BASE = 64, 2, 0.1, 15
MATCHING_SIDE, MATCHING_SHOTS, MATCHING_FOREGROUND = 60, 5, 0.2
FOREGROUND_SIDE = 0.45  # of the square of foreground in the support pictures: 20 % of their area
SMALL_SIDE = 65  # in pixels: of the call that loads the libraries


@dataclass(frozen=True)
class Spec:
    """A case that can be built again in another process.

    Attributes:
        case: "matching", "trunk", "evaluate", "train", "meta_evaluate" or "meta_train".
        form: "ours", "dense" (trunk: "plain").
        side: Side of the square input in pixels; of the feature map for "matching".
        shots: K.
        batch: Episodes at once.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
        backbone: Name of the backbone.
        compiled: Mode of `torch.compile`, or "aot_eager", which traces all and compiles nothing; empty: not compiled.
    """

    case: str
    form: str = "ours"
    side: int = 473
    shots: int = 1
    batch: int = 1
    precision: str = "fp32"
    device: str = "cpu"
    backbone: str = "resnet50"
    compiled: str = ""

    def small(self) -> Spec:
        """The same on small pictures, to load what is loaded at the first call."""
        return replace(self, side=8 if self.case == "matching" else SMALL_SIDE)


class StoredTrunk(nn.Module):
    """Stands for the trunk: gives the same features for any picture, at once. What is left is the meta learner's cost.

    Args:
        trunk: The trunk whose features are given.
        side: Side of the pictures.
        device: Where the features lie.
    """

    def __init__(self, trunk: FrozenTrunk, side: int, device: str) -> None:
        super().__init__()
        self.classifier, self.feature_info = trunk.base_learner.classifier, trunk.feature_info
        size = -(-side // trunk.feature_info[0].stride)
        channels = [*(level.channels for level in trunk.feature_info), trunk.base_learner.feature_channels]
        generator = torch.Generator().manual_seed(0)
        made = (torch.randn(1, c, size, size, generator=generator).relu_() for c in channels)
        self.features = TrunkFeatures(*(x.to(device, memory_format=torch.channels_last) for x in made))

    def prepare(self, device: torch.device) -> None:
        """Nothing has to be folded."""

    def forward(self, images: Tensor, prepared: None = None) -> TrunkFeatures:
        """All pictures at once."""
        return TrunkFeatures(*(torch.cat([value] * len(images)) for value in vars(self.features).values()))

    def encode(self, images: Tensor) -> Iterator[TrunkFeatures]:
        """One picture after the other."""
        for _ in range(len(images)):
            yield self.features

    @torch.no_grad()
    def classify(self, base_feature: Tensor) -> Tensor:
        """As `FrozenTrunk.classify`."""
        logits: Tensor = self.classifier(base_feature)
        return logits


def build_learner(spec: Spec) -> BaseLearner:
    """A base learner of random weights, whose normalisations have seen pictures: its activations are of real size."""
    torch.manual_seed(0)
    learner = BaseLearner(backbone=build_backbone(spec.backbone), num_base=NUM_BASE).train()
    norms = [module for module in learner.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        learner(torch.randn(2, 3, SMALL_SIDE, SMALL_SIDE))
    return learner.eval().to(spec.device)


def build_models(spec: Spec) -> tuple[HDMNet, DenseHDMNet]:
    """Ours and the dense form of it, with the same parameters."""
    model = build_hdmnet(build_learner(spec), num_shots=spec.shots).to(spec.device)
    return model, DenseHDMNet(model, build_learner(spec))


def make_episode(spec: Spec) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query and support pictures, support masks and query masks, of random content."""
    generator = torch.Generator().manual_seed(1)
    b, k, s = spec.batch, spec.shots, spec.side
    query = torch.randn(b, 3, s, s, generator=generator)
    supports = torch.randn(b, k, 3, s, s, generator=generator)
    masks = torch.zeros(b, k, s, s)
    low, high = round(0.25 * s), round((0.25 + FOREGROUND_SIDE) * s)
    masks[..., low:high, low:high] = 1
    device = spec.device
    return query.to(device), supports.to(device), masks.to(device), masks[:, 0].long().to(device)


def build_case(spec: Spec) -> Callable[[], object]:
    """Make what a spec names ready to be called.

    Raises:
        ValueError: There is no such case.
    """
    if spec.case == "matching":
        return build_matching(spec)[0]
    if spec.case == "trunk":
        return build_trunk(spec)
    if spec.case not in ("evaluate", "train", "meta_evaluate", "meta_train"):
        raise ValueError(f"case {spec.case!r} is unknown")
    ours, dense = build_models(spec)
    if spec.form == "dense":  # as released: no channels-last weights either
        ours.to(memory_format=torch.contiguous_format)
    if spec.case.startswith("meta_"):
        ours.trunk = StoredTrunk(ours.trunk, spec.side, spec.device)  # type: ignore[assignment]
    model = ours if spec.form == "ours" else dense
    if spec.compiled:
        how = {"backend": spec.compiled} if spec.compiled == "aot_eager" else {"mode": spec.compiled}
        model.compile(**how, dynamic=False)
    return (build_training if spec.case.endswith("train") else build_evaluation)(model, spec)


def case_memory(context: Context, spec: Spec) -> Memory:
    """Peak memory of a case in a process of its own; of a quick run in this process, to save the starts."""
    return measure_call(build_case(spec), spec.device) if context.quick else peak_memory(spec)


def build_matching(spec: Spec) -> tuple[Callable[[], list[Tensor]], dict[str, int]]:
    """The matching, forward and backward: a call that returns output, map and gradients, and where those begin."""
    torch.manual_seed(0)
    layer = CorrelationMatching(CHANNELS, num_heads=HEADS, temperature=TEMPERATURE, dropout=0.0).eval().to(spec.device)
    side, shots, batch = spec.side, spec.shots, spec.batch
    query = torch.randn(batch, CHANNELS, side, side)
    support = torch.randn(batch, shots, CHANNELS, side, side)
    mask = torch.zeros(batch, shots, side, side)
    mask[:, :, : round(MATCHING_FOREGROUND * side)] = 1
    prior, weight = torch.rand(batch, 2, side, side), torch.randn(batch, CHANNELS, side, side)
    query, support, mask, prior, weight = (x.to(spec.device) for x in (query, support, mask, prior, weight))
    leaves = [query.requires_grad_(), support.requires_grad_(), *layer.parameters()]

    def call() -> list[Tensor]:
        if spec.form == "ours":
            out, correlation = layer(query, support, mask, prior)
        else:
            out, correlation = dense_matching(layer, query, support, mask, prior)
        loss = (out * weight).sum() + (correlation * weight[:, 0]).sum()
        gradients = torch.autograd.grad(loss, leaves)
        return [out.detach(), correlation.detach(), *gradients]

    return call, {"output": 0, "map": 1, "gradients": 2}


def build_trunk(spec: Spec) -> Callable[[], object]:
    """The trunk on 1 + K pictures an episode: ours at once, the plain one picture after the other."""
    pictures = torch.randn(spec.batch * (1 + spec.shots), 3, spec.side, spec.side).to(spec.device)
    model, dense = build_models(spec)
    plain = dense.trunk

    def call() -> object:
        with torch.inference_mode(), autocast(spec):
            if spec.form == "ours":
                for features in model.trunk.encode(pictures):  # not kept: nor does the model keep them
                    del features
                return None
            # A GPU would idle with single pictures; the release encodes the batch of one role at once.
            for part in pictures.split(1 if spec.device == "cpu" else spec.batch):
                plain(part)
            return None

    return call


def build_evaluation(model: nn.Module, spec: Spec) -> Callable[[], object]:
    """A forward pass in evaluation, up to the logits at full resolution."""
    query, supports, masks, _ = make_episode(spec)
    masks = masks_for(model, masks)
    model.eval()

    def call() -> object:
        with torch.inference_mode(), autocast(spec):
            return model(query, supports, masks).logits

    return call


def masks_for(model: nn.Module, masks: Tensor) -> Tensor:
    """Support masks where the loader leaves them: on the CPU for a method that takes them there."""
    if masks.is_cuda and getattr(model, "takes_host_masks", False):
        return masks.cpu().pin_memory()
    return masks


def build_training(model: nn.Module, spec: Spec) -> Callable[[], object]:
    """A training step: forward, losses, backward, AdamW."""
    query, supports, masks, target = make_episode(spec)
    masks = masks_for(model, masks)
    classes = torch.zeros(spec.batch, dtype=torch.long, device=spec.device)
    owner = model.model if isinstance(model, DenseHDMNet) else model
    assert isinstance(owner, HDMNet)
    optimiser = torch.optim.AdamW(owner.parameter_groups(lr=1e-4), lr=1e-4, weight_decay=0.01)
    model.train()

    def call() -> object:
        with autocast(spec):
            output = model(query, supports, masks, classes)
            loss = segmentation_loss(output.logits, target) + segmentation_loss(output.logits_of("meta"), target)
            loss = loss + correlation_distillation(output.maps["correlation"], target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return None

    return call


def autocast(spec: Spec) -> AbstractContextManager[object]:
    """Mixed precision where the spec asks for it."""
    if spec.precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(spec.device, dtype=torch.bfloat16)


def run_matching(context: Context) -> list[Row]:
    """Matching against its dense form: time, extra memory, and how closely they agree."""
    side = 12 if context.quick else MATCHING_SIDE
    spec = Spec("matching", side=side, shots=MATCHING_SHOTS)
    dense = replace(spec, form="dense")
    context.progress.step("matching: memory")
    memory, dense_memory = case_memory(context, spec), case_memory(context, dense)
    context.progress.step("matching: time")
    (ours, places), (baseline, _) = build_matching(spec), build_matching(dense)
    times = interleave(context, {"ours": ours, "dense": baseline}, name="matching")
    found, expected = ours(), baseline()
    starts = [*places.values(), len(found)]
    rows = [
        Row("positions", "query positions", side * side),
        Row("time_dense_s", "dense form, forward and backward", times["dense"], "s"),
        Row("time_s", "ours", times["ours"], "s"),
        Row("time_ratio", "times as fast", times["dense"] / times["ours"], "", "≥ 12"),
        Row("memory_dense_mb", "dense form, extra memory", dense_memory.extra, "MB"),
        Row("memory_mb", "ours", memory.extra, "MB"),
        Row("memory_ratio", "of the dense form's memory", memory.extra / dense_memory.extra, "", "≤ 0.1"),
    ]
    for (name, start), end in zip(places.items(), starts[1:], strict=True):
        pairs = zip(found[start:end], expected[start:end], strict=True)
        worst = max(relative_difference(a, b) for a, b in pairs)
        rows.append(Row(f"difference_{name}", f"relative difference of {name}", worst, "", "≤ 1e-5"))
    return rows


def run_trunk(context: Context) -> list[Row]:
    """The trunk: plain modules, ours in fp32, ours in bf16."""
    spec = model_spec(context, "trunk", side=context.sides[0], shots=0)
    context.progress.step(f"trunk at {spec.side}")
    specs = {
        "plain": replace(spec, form="plain"),
        "fp32": spec,
        "bf16": replace(spec, precision="bf16"),
        "plain_bf16": replace(spec, form="plain", precision="bf16"),
    }
    times = interleave(context, {name: build_trunk(one) for name, one in specs.items()}, name="trunk")
    rows = [Row(f"time_{name}_s", f"{label}, one picture", times[name], "s") for name, label in _TRUNKS.items()]
    rows.append(Row("ratio_fp32", "ours in fp32, times as fast as plain", times["plain"] / times["fp32"], "", "≥ 1"))
    rows.append(Row("ratio_bf16", "ours in bf16, times as fast as plain", times["plain"] / times["bf16"], "", "≥ 3.5"))
    model, dense = build_models(spec)
    picture = make_episode(replace(spec, shots=1))[0]
    expected = dense.trunk(picture)
    for precision, target in (("fp32", "≤ 1e-4"), ("bf16", "")):
        with torch.inference_mode(), autocast(replace(spec, precision=precision)):
            features = model.trunk(picture)
        levels = (features.layer2, features.layer3, features.layer4, features.base_feature)
        worst = max(relative_difference(a, b) for a, b in zip(levels, expected, strict=True))
        label = f"largest relative difference of a feature, {precision}"
        rows.append(Row(f"difference_{precision}", label, worst, "", target))
    return rows


_TRUNKS = {"plain": "plain fp32", "plain_bf16": "plain bf16", "fp32": "ours fp32", "bf16": "ours bf16"}


def model_spec(context: Context, case: str, *, side: int, shots: int) -> Spec:
    """A case on the whole network, on a small one if the benchmark is quick."""
    small = context.quick
    return Spec(
        case,
        side=SMALL_SIDE if small else side,
        shots=shots,
        backbone="resnet_narrow" if small else "resnet50",
    )


def run_model(context: Context) -> list[Row]:
    """The whole model: evaluation and training beside the trunk's own time, for every side, shot and precision."""
    rows = []
    for side in context.sides[: 1 if context.quick else None]:
        for shots in context.shots:
            for precision in context.precisions:
                spec = replace(model_spec(context, "evaluate", side=side, shots=shots), precision=precision)
                rows += model_rows(context, spec)
    return rows


def model_rows(context: Context, spec: Spec) -> list[Row]:
    """Figures of one setting of the whole model."""
    name = f"{spec.shots}shot_{spec.side}_{spec.precision}"
    specs = {
        "trunk_plain": replace(spec, case="trunk", form="plain"),
        "trunk": replace(spec, case="trunk"),
        "evaluate": spec,
        "train": replace(spec, case="train"),
    }
    if context.dense:
        specs |= {f"{case}_dense": replace(spec, case=case, form="dense") for case in ("evaluate", "train")}
    context.progress.step(f"model {name}: memory")
    memory = {case: case_memory(context, one) for case, one in specs.items()}
    context.progress.step(f"model {name}: time")
    contestants = {case: build_case(one) for case, one in specs.items()}
    times = interleave(context, contestants, name=f"model/{name}")
    plain, own = times["trunk_plain"], times["trunk"]
    gap = prediction_gap(spec)
    title = f"{spec.shots}-shot {spec.side}² {spec.precision}"
    limit, step_limit = (0.1, 1.3) if spec.shots == 1 else (0.08, 1.35)
    on_cpu = spec.device == "cpu" and spec.precision == "fp32"
    titles = {case: case.replace("_", ", ") for case in specs}
    figures = [
        *(Row(f"time_{case}_s", titles[case], value, "s") for case, value in times.items()),
        *(Row(f"memory_{case}_mb", f"{titles[case]}: extra memory", m.extra, "MB") for case, m in memory.items()),
        *(Row(f"peak_{case}_mb", f"{titles[case]}: peak memory", m.total, "MB") for case, m in memory.items()),
        Row(
            "beyond_plain_trunk",
            "evaluation beyond the plain trunk's time, share of it",
            times["evaluate"] / plain - 1,
            "",
            f"≤ {limit}" if on_cpu else "",
        ),
        Row("beyond_own_trunk", "evaluation beyond our trunk's time", times["evaluate"] / own - 1),
        Row(
            "train_over_plain_trunk",
            "training step over the plain trunk's forward time",
            times["train"] / plain,
            "",
            f"≤ {step_limit}" if on_cpu else "",
        ),
        Row("train_over_own_trunk", "training step over our trunk's forward time", times["train"] / own),
        Row("evaluate_episodes_s", "evaluation", spec.batch / times["evaluate"], "episodes/s"),
        Row("train_episodes_s", "training", spec.batch / times["train"], "episodes/s"),
        Row("difference", "relative difference of the logits from the dense form", gap, "", "≤ 1e-3" if on_cpu else ""),
    ]
    if context.dense:
        for case in ("evaluate", "train"):
            figures += [
                Row(f"{case}_ratio", f"{case}: times as fast as dense", times[f"{case}_dense"] / times[case]),
                Row(f"{case}_memory_ratio", f"{case}: of the dense form's memory", _ratio(memory, case)),
            ]
    return [replace(row, key=f"{name}/{row.key}", label=f"{title}: {row.label}") for row in figures]


def _ratio(memory: dict[str, Memory], case: str) -> float:
    return memory[case].extra / memory[f"{case}_dense"].extra


def prediction_gap(spec: Spec) -> float:
    """Largest relative difference of our logits from those of the dense form in fp32."""
    ours, dense = build_models(spec)
    query, supports, masks, _ = make_episode(spec)
    with torch.inference_mode():
        expected = dense.eval()(query, supports, masks)
        with autocast(spec):
            found = ours.eval()(query, supports, masks)
    pairs = ((found.logits, expected.logits), (found.logits_of("meta"), expected.logits_of("meta")))
    return max(relative_difference(a, b) for a, b in pairs)
