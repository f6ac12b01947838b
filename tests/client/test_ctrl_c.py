"""Ctrl-C while a call is sent is late, and while a run is stepped it is a request."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mlx_nb.client.ctrl_c import asks, held_back


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_held_back_until_the_work_is_whole() -> None:
    done = []

    def work() -> None:
        with held_back():
            ctrl_c()
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["whole"]
    with held_back():
        pass  # the control: nobody pressed


def test_the_first_asks_and_the_second_raises() -> None:
    asked = threading.Event()
    with asks(asked.set):
        ctrl_c()
        assert asked.wait(5)
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_held_back_inside_asks_is_a_request_too() -> None:
    asked = threading.Event()
    with asks(asked.set), held_back():
        ctrl_c()
        assert not asked.is_set()
    assert asked.wait(5)


def test_other_threads_are_left_alone() -> None:
    found = []

    def inside() -> None:
        with held_back(), asks(lambda: None):
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]


@pytest.mark.parametrize("failing", [False, True])
def test_what_was_asked_for_is_over_at_the_end(failing: bool) -> None:
    """A signal to a rank that came later would end the call after."""
    told: list[str] = []

    def stop() -> None:
        time.sleep(0.3)
        told.append("the last rank")

    with suppress(ZeroDivisionError), asks(stop):
        ctrl_c()
        assert told == []  # the control: it takes its time
        if failing:
            1 / 0  # noqa: B018
    assert told == ["the last rank"]
