"""The views over real ranks: what they show is what the ranks hold, and little of it travels."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mlx_nb.client.displays import display_capture
from mlx_nb.client.live_view import close_views, live_views
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.show import show_view
from mlx_nb.client.tensor_view import display_tensor
from mlx_nb.shared.errors import OptionError, SiteError
from mlx_nb.shared.tensor import Window

pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    yield
    close_views()
    assert live_views == []


def until(condition, limit_s: float = 10) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def cells(live) -> np.ndarray:
    state = live.view.state
    rows, columns = (0, state["height"]), (0, state["width"])
    return Window(rows=rows, columns=columns, cells=live.view.overview, **state["overview"]).values()


def test_a_tensor_of_a_trace_shows_its_values_numbers_and_tokens(pipe2: Pipe) -> None:
    trace = pipe2.trace("What is the capital of France?", sites="layers.20.resid_post", max_tokens=2)
    capture = trace["layers.20.resid_post"]

    live = display_tensor(capture)
    until(lambda: live.view.state["numbers"] or live.view.state["error"])

    state = live.view.state
    assert state["error"] == ""
    assert (state["site"], state["suffix"], state["note"]) == ("layers.20", ".output", "rank 1")
    assert (state["height"], state["width"]) == capture.shape[1:]
    numbers = {cell["name"]: cell["value"] for cell in state["numbers"]}
    assert numbers["NaN"] == numbers["Inf"] == "0"
    values = capture[0]
    row, column = np.unravel_index(np.abs(values).argmax(), values.shape)
    assert (state["outliers"][0]["row"], state["outliers"][0]["column"]) == (row, column)
    question = {
        "version": state["version"],
        "rows": [0, 8],
        "columns": [100, 200],
        "height": 99,
        "width": 200,
    }
    answer = live._window(question)
    found = np.frombuffer(answer.buffers[0], "<f4").reshape(8, 100)
    assert (found == values[:8, 100:200]).all()
    assert "<|im_start|>" in answer.content["row_labels"]
    assert repr(capture) in live.view.text()
    trace.drop()


def test_a_site_is_recorded_with_the_last_runs_tokens_and_a_kv_buffer_is_shown(pipe2: Pipe) -> None:
    run = pipe2.generate("What is the capital of France?", max_tokens=3)

    live = show_view(pipe2, "tensor", "layers.3.resid_post")

    assert pipe2.last is run
    fed = len(run.prompt_ids) + 2
    assert live.view.state["height"] == fed
    assert f"{fed} tokens" in live.view.state["sentence"]
    kv = pipe2.kv_cache()
    buffer = display_tensor(kv[17].keys)
    buffer._turn({"rows": 2, "columns": 3, "index": [0, 1, 0, 0]})
    assert buffer.view.state["note"].startswith("rank 1")
    assert np.array_equal(cells(buffer), kv[17].keys[0, 1])


def test_it_follows_the_stepper(pipe2: Pipe) -> None:
    with pipe2.debug("What is the capital of France?", max_tokens=2) as dbg:
        dbg.layer(2)
        live = show_view(pipe2, "tensor")
        assert live.view.state["site"] == "layers.1"
        dbg.layer()
        until(lambda: live.view.state["site"] == "layers.2")
        assert cells(live).max() == pytest.approx(dbg.value.max(), rel=0.01)
    close_views()
    assert dbg.listeners == []


def test_what_cannot_be_shown_says_so(pipe2: Pipe) -> None:
    with pytest.raises(OptionError, match="nothing is being stepped"):
        show_view(pipe2, "tensor")
    with pytest.raises(SiteError, match="No site"):
        show_view(pipe2, "tensor", "layers.3.nonsense")
    with pytest.raises(OptionError, match="int cannot be shown"):
        show_view(pipe2, "tensor", 3)


def test_kv_caches_show_offsets_norms_and_can_be_cut(pipe2: Pipe) -> None:
    run = pipe2.generate("What is the capital of France?", max_tokens=3)
    fed = len(run.prompt_ids) + 2

    live = show_view(pipe2, "kv")
    assert [(row["rank"], row["filled"], row["layers"]) for row in live.view.state["rows"]] == [
        (0, fed, "0–14"),
        (1, fed, "15–29"),
    ]
    live._choose({"layer": 17, "buffer": "values"})
    norms = np.frombuffer(live.view.norms, "<f4").reshape(3, fed)
    expected = np.linalg.norm(pipe2.kv_cache()[17].values[0], axis=-1)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    live._trim({"count": 2})
    assert {row["offset"] for row in live.view.state["rows"]} == {str(fed - 2)}
    assert {row["stale"] for row in live.view.state["rows"]} == {2}
    assert live.view.state["chosen"]["positions"] == list(range(fed - 2))
    with pytest.raises(OptionError, match="cannot be cut off"):
        live._trim({"count": fed})
    assert str(fed - 2) in live.view.html()


def test_a_ring_says_where_it_writes_and_what_it_keeps(pipe2: Pipe) -> None:
    pipe2.generate("What is the capital of France?", max_tokens=3, max_kv_size=16)

    live = show_view(pipe2, "kv")
    live._choose({"layer": 3})

    row = live.view.state["rows"][0]
    assert row["kept"] == pipe2.kv_cache()[3].report.kept
    assert 0 <= row["ring_at"] <= row["capacity"] == 16
    assert live.view.state["chosen"]["ring"]
    assert sorted(live.view.state["chosen"]["positions"]) != live.view.state["chosen"]["positions"]


def test_attention_shows_what_its_rank_recorded_head_by_head_and_layer_by_layer(pipe2: Pipe) -> None:
    run = pipe2.generate("What is the capital of France?", max_tokens=3)
    fed = [*run.prompt_ids, *run.token_ids[:-1]]

    live = show_view(pipe2, "attention", layer=20, head=4)

    state = live.view.state
    assert pipe2.last is run
    assert (state["layer"], state["rank"], state["heads"], state["head"]) == (20, 1, 9, 4)
    assert float(state["distance"].replace("−", "-")) < 1e-6
    assert state["tokens"][0] == "<|im_start|>"
    assert len(state["tokens"]) == len(fed)
    trace = pipe2.trace(fed, sites="layers.20.pattern,layers.3.pattern", prefill_step_size=512)
    expected = trace["layers.20.pattern"].numpy()[0]
    shown = np.frombuffer(live.view.values, "<f4").reshape(len(fed), len(fed))
    np.testing.assert_array_equal(shown, expected[4])
    live._choose({"head": 7})
    np.testing.assert_array_equal(np.frombuffer(live.view.values, "<f4"), expected[7].ravel())
    live._choose({"layer": 3})
    assert (live.view.state["layer"], live.view.state["rank"]) == (3, 0)
    with pytest.raises(OptionError, match="The heads are 0–8"):
        live._choose({"head": 9})

    recorded = show_view(pipe2, "attention", trace, layer=3, head=7)
    assert recorded.view.values == live.view.values
    one = display_capture(trace["layers.20.pattern"])
    assert [each["layer"] for each in one.view.state["layers"]] == [20]
    with pytest.raises(OptionError, match="no layer 5"):
        show_view(pipe2, "attention", trace, layer=5)
    with pytest.raises(OptionError, match="no attention pattern"):
        show_view(pipe2, "attention", pipe2.trace("Hi")["layers.3.resid_post"])
    with pytest.raises(OptionError, match="no layer 30"):
        show_view(pipe2, "attention", layer=30)
    trace.drop()


def test_a_comparison_opens_into_modules_and_shows_the_difference(pipe2: Pipe) -> None:
    clean = pipe2.trace(
        "What is the capital of France?",
        sites="layers.*,layers.*.input,layers.20.**,layers.20.**.input",
        prefill_step_size=16,
    )
    gen = pipe2.last
    with pipe2.patch("layers.20.mlp.output", lambda x: 1.5 * x):
        report = pipe2.diff(clean)
        before = pipe2.last
        live = show_view(pipe2, "diff", report)
        assert next(row["site"] for row in live.view.state["rows"] if row["verdict"]) == "layers.20.output"
        live._look_inside({"layer": 20})
        inside = {row["site"]: row["verdict"] for row in live.view.state["inside"]["20"]}
        assert inside["layers.20.mlp.output"] == "differs"
        assert inside["layers.20.self_attn.q_proj.output"] == ""
        live._look_at({"site": "layers.20.mlp.output"})
        assert pipe2.last is before
    gap = live._gap[1]
    np.testing.assert_allclose(gap, 0.5 * clean["layers.20.mlp.output"].numpy(), rtol=1e-3, atol=1e-3)
    assert live.view.state["gap"]["site"] == "layers.20.mlp.output"
    with pytest.raises(OptionError, match=r"no value of one shape|no site|was not recorded"):
        live._look_at({"site": "layers.3.mlp.output"})
    assert gen is not None
    clean.drop()


def test_plans_shapes_and_tokens_open_by_name(pipe2: Pipe, capsys: pytest.CaptureFixture[str]) -> None:
    for name, argument, said in (
        ("plan", "", "layers 15–29"),
        ("shapes", "*.mlp", "30 sites of smollm2"),
        ("tokens", "What is MPI", "from the chat template"),
    ):
        show_view(pipe2, name, argument)
        assert said in capsys.readouterr().out


def test_the_kv_view_follows_a_stepper_and_goes_back_for_what_it_said(pipe2: Pipe) -> None:
    with pipe2.debug("What is the capital of France?", max_tokens=6) as dbg:
        live = show_view(pipe2, "kv")
        dbg.token(3)
        fed = dbg.position.start
        until(lambda: {row["offset"] for row in live.view.state["rows"]} == {str(fed)})
        here = dbg.position
        cost = live._cost({"count": 2}).content
        assert "to the start of pass 1 (token 37); its start is remembered" in cost["rewind"]
        assert f"{fed} → {fed - 2} tokens" in cost["trim"]
        assert "run again up to here" in cost["fork"]

        live._fork({})
        (other,) = live.forks
        assert other.position.where == here.where == dbg.position.where
        other.token()
        assert dbg.position is here
        other.close()

        live._rewind({"count": 2})
        assert dbg.position.where == "decode 37:38 · rank 0 · model.embed_tokens.input"
        assert {row["offset"] for row in live.view.state["rows"]} == {"37"}
        live._trim({"count": 4})
        assert dbg.position.start == 33
        assert "no pass begins 9 before this place" in live._cost({"count": 9}).content["rewind"]


def test_the_kv_view_follows_runs_and_pause_shows_what_a_running_one_holds(pipe2: Pipe) -> None:
    pipe2.generate("What is the capital of France?", max_tokens=3)
    live = show_view(pipe2, "kv")
    run = pipe2.start("Once upon a time there was", raw=True, max_tokens=25)
    offsets = set()
    until(lambda: offsets.add(live.view.state["rows"][0]["offset"]) or run.done)
    assert len(offsets) > 2  # the ranks answer in between
    until(lambda: live.view.state["rows"][0]["offset"] == str(len(run.gen.prompt_ids) + 24))

    thread = threading.Thread(target=lambda: pipe2.generate("Once upon a time", raw=True, max_tokens=40))
    thread.start()
    until(
        lambda: (
            live.view.state["run"]["status"] == "running" and "As of before" in live.view.state["sentence"]
        )
    )
    with pytest.raises(OptionError, match="Press Pause"):
        live._choose({"layer": 3})
    live._pause({})
    assert live.view.state["run"] == {"status": "paused", "pause": False, "resume": True}
    held = int(live.view.state["rows"][0]["offset"])
    assert abs(held - len(pipe2.last.prompt_ids) - len(pipe2.last.token_ids)) <= 1
    live._choose({"layer": 3})
    assert live.view.norms
    live._resume({})
    thread.join(30)
    assert len(pipe2.last.token_ids) == 40
    until(lambda: live.view.state["rows"][0]["offset"] == str(len(pipe2.last.prompt_ids) + 39))


def test_the_timeline_of_the_last_run_is_that_of_the_next_one_too(pipe2: Pipe) -> None:
    pipe2.generate("What is the capital of France?", max_tokens=2)
    live = show_view(pipe2, "timeline")
    fixed = show_view(pipe2, "timeline", pipe2.last)
    assert "2 generated" in live.view.state["note"]

    pipe2.generate("What is the capital of France?", max_tokens=4)

    until(lambda: "4 generated" in live.view.state["note"])
    assert "2 generated" in fixed.view.state["note"]
    whole = {"begin_s": 0, "end_s": 100, "whole": True}
    assert len(live._asks["window"](whole).buffers[0]) > len(fixed._asks["window"](whole).buffers[0])
