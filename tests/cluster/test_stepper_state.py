"""What the stepper's first screen says, from real runs; the browser's tests draw it."""

from collections.abc import Iterator

import numpy as np
import pytest

from mlx_nb.client.debugger import Debugger
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.stepper_state import stepper_state
from mlx_nb.shared.preview import preview_limit
from mlx_nb.shared.view_state import StepperState

pytestmark = [pytest.mark.cluster]

PROMPT = "What is the capital of France?"


@pytest.fixture
def dbg(pipe2: Pipe) -> Iterator[Debugger]:
    with pipe2.debug(PROMPT, max_tokens=40) as stepper:
        yield stepper


def test_while_a_run_goes_on_no_rank_is_said_to_stand(dbg: Debugger) -> None:
    told: list[StepperState] = []
    dbg.layer(3)
    standing = stepper_state(dbg)
    assert [lane["status"] for lane in standing["lanes"]] == ["stopped", "waits"]  # the control

    dbg.listeners.append(lambda one: told.append(stepper_state(one)))
    dbg.token(30)

    running = [state for state in told if state["status"] == "running"]
    assert running
    for state in running:
        assert [lane["status"] for lane in state["lanes"]] == ["running", "running"]
        assert not [lane for lane in state["lanes"] if "pending" in lane["note"]]
        assert {cell["state"] for lane in state["lanes"] for cell in lane["layers"]} == {"pending"}
        assert not [token for token in state["tokens"] if token["in_pass"]]
        assert (state["where"], state["pass_text"]) == ("", "")
    assert told[-1]["lanes"][0]["status"] == "finished"


def test_where_and_list_name_the_same_frames(dbg: Debugger) -> None:
    dbg.until("layers.27.attn_out")

    *_, around, here = dbg.where().splitlines()
    head, place, *_ = dbg.source().splitlines()

    assert here.split() == ["→", "Attention", "model.layers.27.self_attn"]
    assert around.split()[:2] == ["TransformerBlock", "model.layers.27"]
    assert around.split()[2] == place.rpartition("/")[2]  # llama.py:144
    assert head == "TransformerBlock.__call__, which has called Attention model.layers.27.self_attn"

    dbg.into()
    assert dbg.source().startswith("TransformerBlock.__call__, which calls RMSNorm model.layers.27.post_")


def test_colours_that_end_before_the_greatest_value_say_so(dbg: Debugger) -> None:
    dbg.wants_preview = True
    dbg.until("layers.27.resid_post")

    summary, limit = dbg.position.summary, preview_limit(dbg.preview)
    assert summary
    assert limit
    assert summary.max > 2 * limit  # the control
    assert stepper_state(dbg)["preview_note"] == "colours clipped at the 99th percentile"

    dbg.value = np.ones(summary.shape, np.float32)
    dbg.refresh_preview()
    assert preview_limit(dbg.preview) == 1
    assert stepper_state(dbg)["preview_note"] == ""
