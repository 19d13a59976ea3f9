from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest

from hdmnet.runtime import signals


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGTERM, "SIGTERM", 75), (signal.SIGINT, "SIGINT", 130)])
def test_a_signal_ends_what_does_not_poll(number, name, code):
    with signals.handling_signals(), pytest.raises(signals.Stopped, match=name) as stop:
        send(number)
    assert (stop.value.exit_code, stop.value.saved) == (code, None)


def poll(*numbers, error=None):
    """A polling section that gets signals; returns what it was told after each."""
    told = []
    with signals.polling():
        for number in numbers:
            send(number)
            told.append(signals.stop_requested())
        TOLD[:] = told
        if error is not None:
            raise error


TOLD = []


def test_a_polling_section_is_told_and_not_interrupted(capfd):
    with signals.handling_signals():
        assert signals.are_handled()
        with pytest.raises(signals.Stopped, match="SIGTERM"):
            poll(signal.SIGTERM, signal.SIGTERM, signal.SIGINT)  # srun and torchrun say it twice
    assert TOLD == [signal.SIGTERM] * 3
    assert not signals.are_handled()
    assert capfd.readouterr().err == "SIGTERM: the run will end after this step\n"


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    TOLD[:] = []
    with signals.handling_signals(), pytest.raises(signals.Stopped, match="SIGINT"):
        poll(signal.SIGINT, signal.SIGINT)
    assert TOLD == []  # it has not come to its end


def test_an_error_in_a_polling_section_is_not_hidden_by_a_signal():
    with signals.handling_signals(), pytest.raises(ValueError, match="diverged"):
        poll(signal.SIGTERM, error=ValueError("diverged"))


def test_one_run_after_another_is_not_ended_by_the_signal_of_the_first():
    for _ in range(2):
        with signals.handling_signals():
            assert signals.stop_requested() is None
            with pytest.raises(signals.Stopped):
                poll(signal.SIGTERM)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with signals.handling_signals():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_slurms_warning_is_heard_under_slurm_only(monkeypatch):
    before = signal.getsignal(signal.SIGUSR1)
    with signals.handling_signals():
        assert signal.getsignal(signal.SIGUSR1) == before
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with signals.handling_signals(), pytest.raises(signals.Stopped) as stop:
        send(signal.SIGUSR1)
    assert stop.value.wants_requeue
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    assert not stop.value.wants_requeue
    assert not signals.Stopped(signal.SIGTERM).wants_requeue


def test_another_thread_cannot_hear_and_does_not_fail():
    def work():
        with signals.handling_signals():
            seen.append(signals.are_handled())

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def worker(says, *, times=2):
    signals.outlive_one_signal()
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        says.put("alive")
    time.sleep(60)


def test_a_worker_outlives_one_signal_of_a_run_that_wants_a_checkpoint():
    context = multiprocessing.get_context("fork")
    says = context.SimpleQueue()
    with signals.handling_signals():
        process = context.Process(target=worker, args=(says,), daemon=True)
        process.start()
        assert says.get() == "alive"
        process.join(timeout=20)
        assert process.exitcode == 0  # the second one
        assert says.empty()


def test_a_worker_that_is_left_does_not_keep_the_run_from_ending():
    """Python would end it by one SIGTERM and wait."""
    context = multiprocessing.get_context("fork")
    says = context.SimpleQueue()
    other = context.Process(target=time.sleep, args=(60,), daemon=True)
    other.start()
    with signals.handling_signals():
        process = context.Process(target=worker, args=(says,), kwargs={"times": 1}, daemon=True)
        process.start()
        assert says.get() == "alive"
        assert process.is_alive()
    assert process.exitcode == -signal.SIGKILL
    assert other.is_alive()  # none of the run's
    other.kill()


def test_a_worker_of_any_other_process_ends_as_ever():
    context = multiprocessing.get_context("fork")
    process = context.Process(target=worker, args=(context.SimpleQueue(),), daemon=True)
    process.start()
    process.join(timeout=20)
    assert process.exitcode != 0
