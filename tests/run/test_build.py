"""Values that constructors refuse are refused before any data is read, in one line with the key."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from hdmnet.config.checks import validate
from hdmnet.run import build
from hdmnet.run.build import build_untrained, check_builds
from hdmnet.runtime import provenance
from hdmnet.runtime.errors import ConfigError


@pytest.mark.long
@pytest.mark.parametrize("words", [(), ("backbone=dinov2_vits14",), ("backbone=efficientnet_lite0", "model=baseline")])
def test_the_defaults_build_and_change_no_random_state(compose_config, words):
    before = torch.get_rng_state()
    check_builds(compose_config("train", *words))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.long
@pytest.mark.parametrize(("model", "backbone"), [("pfenet", "dinov3_vits16"), ("bam", "resnet50_timm")])
def test_methods_that_mask_within_the_trunk_on_timm_say_why_not(compose_config, model, backbone):
    with pytest.raises(ConfigError, match=r"^model: the backbone's last layer runs on masked features: Timm"):
        check_builds(compose_config("train", f"model={model}", f"backbone={backbone}"))


def test_bam_needs_a_base_learner(compose_config):
    with pytest.raises(ConfigError, match=r"^model\.encoder=SequentialBackbone: expected base_learner$"):
        check_builds(compose_config("train", "model=bam", "model.encoder=backbone"))


@pytest.mark.long
@pytest.mark.parametrize("model", ["ssp", "panet"])
def test_a_trunk_that_learns_on_timm_says_what_to_set(compose_config, model):
    words = (f"model={model}", "model.encoder=backbone", "backbone=timm", "backbone.model=convnext_atto")
    with pytest.raises(ConfigError, match=r"^model\.trunk\.before_relu=True: TimmBackbone gives whole levels"):
        check_builds(compose_config("train", *words))
    assert check_builds(compose_config("train", *words, "model.trunk.before_relu=false", "model.trunk.trainable=all"))
    learns = check_builds(compose_config("train", f"model={model}", "model.trunk.trainable=[]"))
    assert not learns  # tested as it is


def test_a_random_backbone_that_never_learns_is_told(compose_config, caplog):
    words = ("backbone=timm", "backbone.model=convnext_atto", "backbone.weights=null")
    build.build_backbone(compose_config("train", *words))
    assert "the backbone is random and stays so" in caplog.text
    caplog.clear()
    build.build_backbone(compose_config("train", *words, "backbone.frozen=false"))
    build.build_backbone(compose_config("train", *words[:2]), weights=None)  # a checkpoint fills it
    assert not caplog.records


@pytest.mark.long
@pytest.mark.parametrize("model", ["hsnet", "dcama"])
def test_methods_of_every_block_on_timm(model, compose_config):
    check_builds(compose_config("train", f"model={model}", "backbone=convnext_tiny"))
    with pytest.raises(ConfigError, match=r"^model\.trunk\.every_block=True: all of VisionTransformer has one stride"):
        check_builds(compose_config("train", f"model={model}", "backbone=dinov2_vits14"))
    with pytest.raises(
        ConfigError, match=r"^model\.trunk\.before_relu=True: timm's ResNet closes its blocks by a ReLU"
    ):
        check_builds(compose_config("train", f"model={model}", "backbone=resnet50_timm"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_stages=5", "model.num_stages=5: expected an integer of 1 to 4"),
        ("model.num_stages=true", "model.num_stages=True: expected an integer of 1 to 4"),
        ("model.matching.temperature=0", "model.matching.temperature=0: expected a number above 0"),
        ("model.matching.num_heads=3", "model.matching.num_heads=3: expected a divisor of 64"),
        ("model.matching.merge_kernel=2", "model.matching.merge_kernel=2: expected 1 or 3"),
        ("loss.temperature=0", "loss.temperature=0: expected a number above 0"),
        ("loss.temperature=hot", "loss.temperature=hot: expected a number above 0"),
        ("loss.distillation=-1", "loss.distillation=-1: expected a number of at least 0"),
        ("model.norm=sync", "model.norm=sync: expected fixed or bn or syncbn; did you mean 'syncbn'"),
        (
            "model.matching.normalise=qery",
            "model.matching.normalise=qery: expected query or support or none; did you mean 'query'",
        ),
        ("model.matching.score=cos", "model.matching.score=cos: expected cosine or dot; did you mean 'cosine'"),
        (
            "loss.distillation_kind=ce_teach",
            "loss.distillation_kind=ce_teach: expected kl_teacher or ce_teacher or ce_truth; did you mean 'ce_teacher'",
        ),
        ("model.dropout=1", r"model.dropout=1: expected a number in \[0, 1\)"),
        ("model.ensemble=maybe", "model.ensemble=maybe: expected true or false"),
        ("+model.colour=1", "model: hdmnet.models.hdmnet.model.build_hdmnet does not take these keys: .*'colour'"),
    ],
)
def test_wrong_values_of_method_and_loss(compose_config, override, message):
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        check_builds(compose_config("train", override))
    assert "\n" not in str(caught.value)


def test_another_method_has_values_of_its_own(compose_config, monkeypatch, tmp_path):
    text = "import torch\n\n\ndef build(encoder, num_shots, norm):\n    return torch.nn.BatchNorm2d(num_shots)\n"
    (tmp_path / "my_norms.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose_config("train")
    OmegaConf.set_struct(cfg, False)
    cfg.model = {"_target_": "my_norms.build", "name": "mine", "encoder": "backbone", "norm": "batch"}
    validate(cfg)
    check_builds(cfg)


class Answers(torch.nn.Module):
    """A method that shows what it stands on."""

    def __init__(self, encoder, num_shots):
        super().__init__()
        self.encoder = encoder


def with_trunk(compose_config, trunk, *overrides, encoder="backbone"):
    """The config of a method that declares something of its trunk."""
    cfg = compose_config("train", *overrides)
    OmegaConf.set_struct(cfg, False)
    cfg.model = {"_target_": f"{__name__}.Answers", "name": "mine", "encoder": encoder, "trunk": trunk}
    return cfg


@pytest.mark.parametrize("encoder", ["backbone", "base_learner"])
def test_a_method_gets_the_trunk_that_it_declares(compose_config, encoder):
    trunk = {"dilation": None, "layers": [2, 3], "every_block": True, "trainable": [3]}
    cfg = with_trunk(compose_config, trunk, "backbone=resnet18", encoder=encoder)
    assert cfg.backbone.dilation is None
    encoder = build_untrained(cfg, num_base=2).encoder
    backbone = getattr(encoder, "backbone", encoder)
    assert [(info.layer, info.stride) for info in backbone.feature_info] == [(2, 8), (2, 8), (3, 16), (3, 16)]
    learning = {name[:8] for name, p in backbone.named_parameters() if p.requires_grad}
    assert learning == {"parts.3."}


def test_the_command_line_has_the_last_word_on_dilation(compose_config):
    cfg = with_trunk(compose_config, {"dilation": None}, "backbone.dilation=torchvision")
    assert [info.stride for info in build_untrained(cfg, num_base=2).encoder.feature_info] == [8, 8, 8]
    assert compose_config("train").backbone.dilation == "release"  # of a method that declares nothing


def test_a_fixed_trunk_stays_in_evaluation_mode(compose_config):
    cfg = compose_config("train", "model=pfenet", "+model.trunk.trainable=[]")
    model = build_untrained(cfg, num_base=2).train()
    assert model.classify.training
    assert not any(module.training for module in model.trunk.encoder.modules())


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ({"dilatoin": None}, r"model\.trunk\.dilatoin: no such key; expected dilation, layers, .*mean 'dilation'\?"),
        ("torchvision", r"model\.trunk=torchvision: expected keys, of dilation, layers"),
        ({"layers": [9]}, r"model\.trunk\.layers=\[9\]: expected some of \[1, 2, 3, 4\], in this order"),
        ({"every_block": 3}, r"model\.trunk\.every_block=3: expected true or false"),
        ({"dilation": "both"}, r"backbone\.dilation='both': resnet_narrow has release or torchvision or null"),
    ],
)
def test_wrong_declarations_of_a_trunk(compose_config, trunk, message):
    with pytest.raises(ConfigError, match=f"^{message}") as caught:
        check_builds(with_trunk(compose_config, trunk))
    assert "\n" not in str(caught.value)


def test_pfenet_on_other_layers_than_it_can_use(compose_config):
    with pytest.raises(ConfigError, match=r"^model: the backbone's last layer runs .* of 2 levels cannot be cut there"):
        check_builds(compose_config("train", "model=pfenet", "+model.trunk.layers=[2,3]"))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed", "32-true", None])
@pytest.mark.parametrize(
    ("info", "emulates"),
    [
        ("model name\t: Old CPU\nflags\t\t: fpu avx2 avx512f\n", True),
        ("model name\t: New CPU\nflags\t\t: fpu avx512f avx512_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),
        (None, False),  # another system: not known
    ],
)
def test_16_bits_that_the_processor_emulates_are_told(
    compose_config, monkeypatch, tmp_path, caplog, precision, info, emulates
):
    if info is not None:
        (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(provenance, "_CPU_INFO", tmp_path / "cpuinfo")
    words = ("trainer=cpu", *([] if precision is None else [f"trainer.precision={precision}"]))
    build.warn_of_slow_precision(compose_config("train", *words))
    expected = emulates and precision is not None and "16" in precision
    assert [record.message.partition(" and ")[0] for record in caplog.records] == (
        [f"trainer.precision={precision}: Old CPU has no bfloat16 instructions"] if expected else []
    )
