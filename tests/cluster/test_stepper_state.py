"""What the stepper's first screen says, from real runs; the browser's tests draw it."""

from collections.abc import Iterator

import numpy as np
import pytest

from mlx_nb.client.debugger import Debugger
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.show import show_stepper
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


def test_the_module_tree_has_the_shapes_of_what_this_pass_has_returned(dbg: Debugger) -> None:
    dbg.wants_preview = True
    dbg.until("layers.3.self_attn.rope.input")
    length = dbg.position.stop

    rows = stepper_state(dbg)["modules"]
    tree = {row["path"]: (row["state"], row.get("shape", "")) for row in rows}

    assert tree["embed_tokens"] == ("done", f"[1, {length}, 576]")
    assert tree["layers.0–2"] == ("done", "")
    assert tree["layers.3"] == ("current", "")
    assert tree["k_proj"] == ("done", f"[1, {length}, 192]")
    assert tree["rope"] == ("current", "")
    assert tree["o_proj"] == ("pending", "")
    assert tree["layers.4–29"] == ("pending", "")
    assert tree["norm"] == ("pending", "")

    dbg.rank()  # on the next rank, where nothing has begun
    tree = {row["path"]: row["state"] for row in stepper_state(dbg)["modules"]}
    assert (tree["layers.0–14"], tree["layers.15"], tree["layers.16–29"]) == ("done", "pending", "pending")

    dbg.until("norm.output")
    tree = {row["path"]: (row["state"], row.get("shape", "")) for row in stepper_state(dbg)["modules"]}
    assert tree["norm"] == ("current", f"[1, {length}, 576]")
    assert tree["layers.0–28"][0] == tree["layers.29"][0] == tree["down_proj"][0] == "done"


def test_a_click_at_a_layer_stops_the_run_there_and_a_second_one_lets_it_pass(dbg: Debugger) -> None:
    live = show_stepper(dbg)

    def press(**details: object) -> None:
        message = {"kind": "ask", "what": "breakpoint", "id": 1, "details": details}
        live.view._handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": []})

    try:
        press(site="layers.20.input")
        cells = live.view.state["lanes"][1]["layers"]
        assert [cell["layer"] for cell in cells if cell["breakpoint"]] == [20]
        assert dbg.run().site == "model.layers.20.input"
        assert live.view.state["breakpoints"][0]["hits"] == 1

        press(site="layers.77.input")
        assert live.view.state["error"].startswith("No site 'layers.77.input'.")

        press(number=live.view.state["breakpoints"][0]["number"])
        assert live.view.state["breakpoints"] == []
        assert dbg.run().kind == "end"  # the control
    finally:
        live.freeze()
        dbg.pipe.breakpoints.delete()


def test_in_the_middle_of_a_decode_step_the_layers_behind_it_have_one_token_pending(dbg: Debugger) -> None:
    dbg.token()
    dbg.until("layers.20.mlp.input")

    kv = dbg.pipe.kv_cache()

    assert [kv[layer].pending for layer in (0, 20, 21, 29)] == [0, 0, 1, 1]
    dbg.run()
    assert {entry.pending for entry in dbg.pipe.kv_cache().report} == {0}
