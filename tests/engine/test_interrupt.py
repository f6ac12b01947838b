"""Ctrl-C between two calls must not cost an answer."""

import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_nb.engine.interrupt import ON_THIS_RANK, interruptible, shelter


@pytest.fixture
def kernel() -> Iterator[Any]:
    """What `shelter` changes of a kernel; the signal's handler is put back afterwards."""
    before = signal.getsignal(signal.SIGINT)
    hooks = SimpleNamespace(
        pre_handler_hook=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        post_handler_hook=lambda: None,
    )
    yield hooks
    signal.signal(signal.SIGINT, before)


def do_apply(call: Callable[[], None]) -> None:
    """Named as ipyparallel names the function under which a call runs, as text that it made."""
    exec(compile("call()", "<string>", "exec"), {"call": call})


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def border(call: Callable[[], None]) -> None:
    """What our own calls go through."""
    call()


def test_ctrl_c_raises_in_a_call_alone(kernel: Any) -> None:
    shelter(kernel, border)
    kernel.pre_handler_hook()  # the kernel takes up a request

    ctrl_c()  # outside the call: nothing is lost
    with pytest.raises(KeyboardInterrupt):
        do_apply(ctrl_c)


def test_in_a_call_of_ours_it_raises_where_that_is_allowed(kernel: Any) -> None:
    shelter(kernel, border)

    do_apply(lambda: border(ctrl_c))
    with ON_THIS_RANK.listening() as heard:
        assert heard.requested  # it came before the call listened, and counts
    with ON_THIS_RANK.listening() as heard:
        assert not heard.requested
    with pytest.raises(KeyboardInterrupt):
        do_apply(lambda: border(lambda: interruptible(ctrl_c)))


def test_without_shelter_it_would_raise_anywhere(kernel: Any) -> None:
    kernel.pre_handler_hook()

    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
