from __future__ import annotations

import concurrent.futures
import errno
import multiprocessing
import os
import pickle
import re
import resource
import signal

import pytest
import torch

from hdmnet.config.instantiate import instantiate
from hdmnet.config.values import image_size
from hdmnet.runtime.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    FileError,
    InputError,
    MissingFileError,
    exit_code,
    one_line,
    refusals_as,
    user_message,
)


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


@pytest.mark.parametrize(
    ("kind", "builtin", "code"),
    [
        (ConfigError, ValueError, 2),
        (InputError, ValueError, 1),
        (DatasetError, ValueError, 1),
        (CheckpointError, ValueError, 1),
        (FileError, OSError, 1),
        (MissingFileError, FileNotFoundError, 1),
    ],
)
def test_the_family_travels_and_can_be_caught_as_built_ins(kind, builtin, code):
    error = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert isinstance(error, builtin)
    assert (type(error), user_message(error), exit_code(error)) == (kind, "what is wrong", code)


def test_refusals_of_code_that_knows_no_family():
    def refuse(error):
        with refusals_as(CheckpointError):
            raise error

    assert type(raised(refuse, ValueError("a"))) is CheckpointError
    assert type(raised(refuse, FileNotFoundError("a"))) is MissingFileError
    assert type(raised(refuse, DatasetError("a"))) is DatasetError
    assert type(raised(refuse, KeyError("a"))) is KeyError


def test_what_a_library_raises_is_a_bug():
    assert user_message(raised(int, "x")) is None
    assert user_message(raised(torch.zeros(2).view, 3)) is None
    assert user_message(ValueError("never raised")) is None


def test_an_implicit_error_inside_the_package_is_a_bug():
    error = raised(image_size, [1, 2, 3])
    assert isinstance(error, ValueError)  # too many values to unpack
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


# ------------------------------------------------------------------------------------------- processes that are gone


class _Ending(torch.utils.data.Dataset):
    """A worker that meets item 1 ends by a signal or an exit code."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 1:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of torch takes seconds to write
            if isinstance(self.how, signal.Signals):
                os.kill(os.getpid(), self.how)
            os._exit(int(self.how))
        return index


# torch's handler of a dead child may raise once more while the loader's iterator is being deleted.
@pytest.mark.filterwarnings("ignore:Exception ignored in.*DataLoaderIter:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (signal.SIGKILL, r"was killed by signal: Killed, most often because memory ran out: lower num_workers, "),
        (signal.SIGBUS, r"was killed by signal: Bus error, most often because shared memory ran out: enlarge /dev/shm"),
        (signal.SIGSEGV, r"was killed by signal: Segmentation fault, a library crashed on what it read: num_workers=0"),
        (3, r"ended unexpectedly with exit code 3, a library crashed"),
    ],
)
def test_a_dead_worker_is_one_line(how, message, capfd):
    loader = torch.utils.data.DataLoader(_Ending(how), batch_size=1, num_workers=2)
    with pytest.raises(RuntimeError, match="DataLoader worker") as error:
        list(loader)
    line = user_message(error.value)
    unknown = "ended unexpectedly, most often because memory ran out"  # torch may look before the system tells
    assert re.fullmatch(rf"data loader worker \(process \d+\) (?:{message}|{unknown}).*", line)


def test_a_worker_whose_end_torch_does_not_tell():
    line = user_message(RuntimeError("DataLoader worker (pid(s) 1) exited unexpectedly"))
    assert line.startswith("data loader worker (process 1) ended unexpectedly, most often because memory ran out")
    assert line.endswith("; or a library crashed on what it read: num_workers=0 shows where")


def test_a_lost_rank_is_one_line_and_other_runtime_errors_are_bugs():
    lost = RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1"
    )
    assert user_message(lost) == (
        "the connection to another process of this job broke: it has ended, and its own message says why"
    )
    assert user_message(RuntimeError("CUDA out of memory")) is None
