import netrc
import sys
from types import SimpleNamespace

import pytest

from hdmnet.callbacks import wandb as ours


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(ours, "WandbLogger", lambda **arguments: arguments)


def test_without_a_key_it_is_offline_and_uploads_nothing():
    assert ours.build_wandb_logger(project="p", log_model=True) == {"offline": True, "project": "p", "log_model": False}


def test_a_key_in_the_environment_or_the_netrc_file_puts_it_online(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert not ours.build_wandb_logger()["offline"]
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert netrc.netrc(str(tmp_path / "netrc")).authenticators("api.wandb.ai")
    assert ours.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")  # a key of another server
    assert not ours.has_key()


def test_wandb_mode_wins(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert ours.build_wandb_logger()["offline"]
    assert ours.build_wandb_logger(offline=False)["offline"]


@pytest.mark.parametrize(("fails", "code"), [(False, 0), (True, 1)])
def test_a_job_ends_its_run(monkeypatch, fails, code):
    codes = []
    fake = SimpleNamespace(run=object(), finish=lambda exit_code: codes.append(exit_code))
    monkeypatch.setitem(sys.modules, "wandb", fake)

    @ours.one_wandb_run()
    def job():
        if fails:
            raise ValueError("broken")

    if fails:
        with pytest.raises(ValueError, match="broken"):
            job()
    else:
        job()
    assert codes == [code]
