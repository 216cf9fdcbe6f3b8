"""Threads: the pool's parts, several runs at once, forks, and stopping a run."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from tcompile import runtime
from tcompile.errors import Error, ExecutionError
from tests.runtime import native_models as models


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_every_part_runs_once(threads):
    """Each iteration of each parallel kernel runs exactly once, in scratch of its own, whatever the number of threads."""
    exe = runtime.load(models.turns_artifact(), threads=threads)
    for n, turns in [(1, 3), (2, 50), (7, 100), (1000, 20)]:
        x = np.full(n, turns, np.int64)
        assert np.array_equal(exe.run([x])["counts"], models.turns_expected(n, turns))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_answer_does_not_depend_on_threads(threads):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 1001, 3), dtype=np.float32)
    with runtime.load(models.add_artifact(), threads=threads) as exe:
        assert np.array_equal(exe.run([x, y])["sum"], x + y + models.WEIGHT)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_failure_in_a_part_stops_the_run(threads):
    """The status of the first iteration that failed, whatever the partition; the session runs on."""
    exe = runtime.load(models.turns_artifact(), threads=threads)
    for _ in range(5):
        with pytest.raises(ExecutionError, match="index out of range"):
            exe.run([np.array([-1, 0, 0, 0])])
    assert np.array_equal(exe.run([np.array([2, 0])])["counts"], models.turns_expected(2, 2))


def test_several_runs_of_one_executable_at_once():
    """Eight threads share one executable and its pool; each gets its own answers."""
    exe = runtime.load(models.turns_artifact(), threads=3)
    problems = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            n, turns = int(rng.integers(1, 40)), int(rng.integers(0, 30))
            got = exe.run([np.full(n, turns, np.int64)])["counts"]
            if not np.array_equal(got, models.turns_expected(n, turns)):
                problems.append((n, turns, got))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert problems == []
    assert 1 <= exe.memory().sessions <= 8


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_profile_tells_how_threads_shared_a_call(clock):
    """The parts' time together, and on the thread with the most: between an equal share and all of it; one thread shares nothing."""
    x = np.ones((50000, 3), np.float32)
    for threads in (1, 2, 5):
        (call,) = runtime.load(models.add_artifact(), threads=threads).profile([x, x], runs=3, clock=clock).calls
        assert bool(call.span) == (threads > 1)
        assert call.span <= call.busy <= threads * call.span * (1 + 1e-9)


def test_executables_share_a_pool():
    pool = runtime.Pool(2)
    one, two = runtime.load(models.add_artifact(), threads=pool), runtime.load(models.turns_artifact(), threads=pool)
    assert one.threads == two.threads == 2
    one.close()
    assert np.array_equal(two.run([np.array([5, 0, 0])])["counts"], models.turns_expected(3, 5))


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_a_wrong_number_of_threads_is_refused(threads):
    with pytest.raises(Error, match="threads is"):
        runtime.load(models.add_artifact(), threads=threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_runs_too():
    """Threads do not survive a fork: the child starts its own, and the parent keeps its."""
    exe = runtime.load(models.turns_artifact(), threads=3)
    x, expected = np.full(11, 20, np.int64), models.turns_expected(11, 20)
    assert np.array_equal(exe.run([x])["counts"], expected)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(exe.run([x])["counts"], expected) else 1)
    assert np.array_equal(exe.run([x])["counts"], expected)
    assert _exit_code(child) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_during_a_run_runs_too():
    """The run in progress holds the pool; in the child nobody does."""
    exe = runtime.load(models.turns_artifact(), threads=2)
    x, expected = np.full(5, 10, np.int64), models.turns_expected(5, 10)
    stop = threading.Event()

    def keep_running():
        while not stop.is_set():
            exe.run([np.full(64, 200, np.int64)])

    worker = threading.Thread(target=keep_running)
    worker.start()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(exe.run([x])["counts"], expected) else 1)
            assert _exit_code(child) == 0
    finally:
        stop.set()
        worker.join()


def _exit_code(child):
    """Waits for a child; one that hangs is killed and fails the test."""
    for _ in range(3000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


def test_a_signal_stops_a_run():
    """What the handler raises comes out of run(), as for Ctrl-C; the executable runs on."""
    exe = runtime.load(models.endless_artifact())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(2):
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                exe.run([np.float32(0)])
            timer.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_does_not_raise_lets_the_run_go_on():
    """The handler runs while the model does; a second signal's handler raises and stops it."""
    exe, seen = runtime.load(models.endless_artifact()), []

    def handler(*_):
        seen.append(1)
        if len(seen) == 3:
            raise InterruptedError("enough")

    before = signal.signal(signal.SIGINT, handler)

    def send():
        for count in range(3):
            while len(seen) < count:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with pytest.raises(InterruptedError, match="enough"):
            exe.run([np.float32(0)])
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    assert len(seen) == 3


def test_another_thread_cancels_runs():
    """The interpreter's lock is free during a run, so that another thread can stop it."""
    exe = runtime.load(models.endless_artifact())
    outcome = []

    def work():
        try:
            exe.run([np.float32(0)])
        except ExecutionError as error:
            outcome.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        exe.cancel()
        worker.join(0.01)
    assert outcome == ["cancelled"]
