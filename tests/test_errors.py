from __future__ import annotations

import concurrent.futures
import errno
import multiprocessing

import pytest
import torch

from hdmnet.config import instantiate
from hdmnet.errors import one_line, user_message


class BadSamples(torch.utils.data.Dataset):
    """Every item fails: by one of our own refusals, or by a bug."""

    def __init__(self, bug):
        self.bug = bug

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return int("x") if self.bug else instantiate({"a": index})


def raised(function, *arguments):
    try:
        function(*arguments)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_our_own_refusals_are_the_users():
    assert user_message(raised(instantiate, {"a": 1})) == "config cannot be built: it has no _target_"


def test_what_a_library_raises_is_a_bug():
    assert user_message(raised(int, "x")) is None
    assert user_message(raised(torch.zeros(2).view, 3)) is None
    assert user_message(ValueError("never raised")) is None


def test_an_implicit_error_inside_the_package_is_a_bug():
    error = raised(instantiate, {"_target_": "hdmnet.config.image_size", "value": [1, 2, 3]})
    assert isinstance(error, ValueError)  # too many values to unpack: our code, but no `raise` of ours
    assert user_message(error) is None


def test_the_operating_systems_refusals_are_the_users(tmp_path):
    missing = str(tmp_path / "missing")
    assert user_message(raised(open, missing)) == f"[Errno 2] No such file or directory: {missing!r}"
    assert "No space left" in user_message(OSError(errno.ENOSPC, "No space left on device"))
    assert user_message(OSError("something else")) is None


@pytest.mark.parametrize("bug", [False, True])
def test_errors_of_a_data_loaders_worker(bug):
    loader = torch.utils.data.DataLoader(BadSamples(bug), num_workers=1)
    message = user_message(raised(next, iter(loader)))
    assert message == (None if bug else "config cannot be built: it has no _target_")


@pytest.mark.parametrize("bug", [False, True])
def test_errors_of_a_process_pools_worker(bug):
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=fork) as pool:
        future = pool.submit(int, "x") if bug else pool.submit(instantiate, {"a": 1})
        message = user_message(raised(future.result))
    assert message == (None if bug else "config cannot be built: it has no _target_")


def test_lightnings_refusals_are_the_users():
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    assert user_message(MisconfigurationException("no\n  GPU")) == "no GPU"


def test_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
