"""Values that constructors refuse are refused before any data is read, in one line with the key."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from hdmnet.config.checks import validate
from hdmnet.run.build import check_builds
from hdmnet.runtime.errors import ConfigError


def test_the_defaults_build_and_change_no_random_state(compose_config):
    before = torch.get_rng_state()
    check_builds(compose_config("train"))
    assert torch.equal(torch.get_rng_state(), before)


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
