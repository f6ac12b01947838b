"""Ctrl-C while a call is sent is late, and while a run is stepped it is a request."""

import signal
import threading
from collections.abc import Iterator

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
