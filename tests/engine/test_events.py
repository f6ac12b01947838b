"""Events and calls on a rank, without a kernel around them."""

from typing import Any

import pytest

from mlx_nb.engine import calls, events
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.failure import Failure


@pytest.fixture
def sink() -> Any:
    got: list[dict[str, Any]] = []
    before = events.set_sink(got.append)
    yield got
    events.set_sink(before)


def test_events_are_numbered_from_zero_in_each_call(sink: list[dict[str, Any]]) -> None:
    for _ in range(2):
        calls.run("ping", (), {})
        assert events.publish({"a": 1}) == 0
        assert events.publish({"a": 2}) == 1
    assert sink == [{"a": 1, "number": 0}, {"a": 2, "number": 1}] * 2


def test_nobody_listens_and_nothing_happens() -> None:
    assert events.running_kernel() is None
    events.publish({"a": 1})


def test_an_unknown_call_is_a_failure_and_not_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    failure = calls.run("nonsense", (), {})

    assert isinstance(failure, Failure)
    assert isinstance(failure.error, RunError)
    assert "know no call 'nonsense'" in capsys.readouterr().err


def test_hello_names_the_versions_that_must_agree() -> None:
    said = calls.hello()

    assert set(said.versions) == {"python", "mlx-nb", "mlx", "mlx-lm"}
    assert (said.rank, said.world_size) == (0, 1)
