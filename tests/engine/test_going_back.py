"""Backwards over ranks in one process: by stride and position, and what follows is bit-equal to the first time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_nb.client.debugger import Debugger
from mlx_nb.engine import history
from mlx_nb.engine.kv import state_arrays
from mlx_nb.engine.stage import Stage
from mlx_nb.shared.errors import OptionError, RunError
from mlx_nb.shared.position import Position
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]

SPLITS = {"gemma3": [4, 3], "gemma4_text": [4, 3]}
# Models of every KV cache class: appended, rotating, quantised, states, trees of them, latents.
KINDS = ["llama", "qwen3_moe", "gemma3", "gemma4_text", "mamba2", "rwkv7", "deepseek_v3"]
SPREAD = [pytest.param(kind, marks=[] if kind in ("gemma3", "rwkv7") else pytest.mark.soak) for kind in KINDS]
STRIDES = ["into", "over", "out", "layer", "rank", "token"]


@pytest.fixture
def pipe(tiny: Tiny) -> Iterator[LoopbackPipe]:
    found = LoopbackPipe(tiny("llama"), [3, 2])
    yield found
    found.unload()


def short(position: Position) -> str:
    return f"{position.start} r{position.rank} {position.site.removeprefix('model.')}"


def same(one: Position, other: Position) -> bool:
    """Whether two stops are the same place with the same numbers there."""
    return (one.where, one.index, one.tick, one.args, one.kv) == (
        other.where,
        other.index,
        other.tick,
        other.args,
        other.kv,
    )


def kv_bits(pipe: LoopbackPipe) -> list[bytes]:
    """Every owned KV cache of the run that ended last, bit for bit."""
    found = []
    for stage in pipe.stages:
        run = stage.last_run
        assert run is not None
        for place in sorted(run._owned):
            entry = run.kv[place]
            for array in state_arrays(entry):
                found.append(np.array(array.astype(mx.float32)).tobytes() + str(array.shape).encode())
            found.append(str(getattr(entry, "offset", "")).encode())
    return found


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[(kind, {}) for kind in KINDS],
        *[
            pytest.param(
                kind, {"temp": 0.9, "seed": 5}, marks=[] if kind in ("llama", "rwkv7") else pytest.mark.soak
            )
            for kind in KINDS
        ],
        *[(kind, {"max_kv_size": 12}) for kind in ("llama", "qwen3_moe")],  # the others make their own
        ("llama", {"kv_bits": 8, "kv_group_size": 32}),
    ],
)
def test_running_on_after_going_back_is_bit_equal(tiny: Tiny, kind: str, options: dict[str, Any]) -> None:
    wide = {"head_dim": 32} if "kv_bits" in options else {}
    pipe = LoopbackPipe(tiny(kind, **wide), SPLITS.get(kind, [3, 2]))
    with pipe.begin_at(**options) as dbg:
        places = [dbg.position]
        for stride in ("layer", "rank", "token", "layer", "token", "token", "layer", "rank", "token"):
            places.append(getattr(dbg, stride)())
        dbg.run()
        wanted, bits = dbg.gen.token_ids, kv_bits(pipe)
        assert len(set(wanted)) > 1
        for place in (places[-1], places[3], places[7], places[1], places[0]):
            assert same(dbg.back(place), place)
            dbg.run()
            assert dbg.gen.token_ids == wanted
            assert kv_bits(pipe) == bits
    pipe.unload()


@pytest.mark.parametrize("kind", ["qwen3", *SPREAD])
def test_every_stride_backwards_meets_the_stops_of_the_way_there(tiny: Tiny, kind: str) -> None:
    pipe = LoopbackPipe(tiny(kind), SPLITS.get(kind, [3, 2]))
    with pipe.begin_at(max_tokens=2) as dbg:
        for stride in ("layer", "rank", "token"):
            dbg.restart()
            there = [dbg.position]
            while not dbg.done:
                there.append(getattr(dbg, stride)())
            for place in reversed(there[1 if stride != "token" else 0 : -1]):
                assert same(dbg.back(stride), place), stride
    pipe.unload()


def test_into_over_and_out_go_back_as_a_mirror(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        dbg.until("layers.3.self_attn.k_proj.output", token=8)
        assert short(dbg.back("into")) == "8 r1 layers.3.self_attn.k_proj.input"
        assert short(dbg.back("over")) == "8 r1 layers.3.self_attn.q_proj.output"
        assert short(dbg.back("over")) == "8 r1 layers.3.self_attn.q_proj.input"
        assert short(dbg.back("out")) == "8 r1 layers.3.self_attn.input"
        assert short(dbg.back("out")) == "8 r1 layers.3.input"
        assert short(dbg.back("into")) == "8 r1 recv"
        assert short(dbg.back("into")) == "8 r0 send"
        assert short(dbg.back("until", site="layers.0.mlp_out")) == "8 r0 layers.0.mlp.output"
        assert short(dbg.back("rank")) == "0 r1 recv"
        assert short(dbg.back("token")) == "0 r0 embed_tokens.input"
        assert short(dbg.back("into", n=2)) == "0 r0 input"
        with pytest.raises(OptionError, match="There is nothing before this place"):
            dbg.back("into")
        assert short(dbg.position) == "0 r0 input"
        with pytest.raises(OptionError, match="There is no stride 'sideways'"):
            dbg.back("sideways")


def test_back_alone_undoes_the_last_stride_and_restart_goes_to_the_start(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        start = dbg.position
        first = dbg.layer(4)
        dbg.token(3)
        dbg.run()
        assert dbg.done
        assert dbg.back().start == 21
        assert same(dbg.back(), first)
        assert same(dbg.back(), start)
        dbg.until("layers.4.output", token=22)
        assert same(dbg.back("restart"), start)
        assert dbg.run().kind == "end"


def test_back_run_goes_to_the_breakpoint_before(pipe: LoopbackPipe) -> None:
    pipe.break_at("layers.2.output", token=3)
    with pipe.begin_at() as dbg:
        stop = dbg.run()
        dbg.token(2)
        assert same(dbg.back("run"), stop)
        assert [one.hits for one in pipe.breakpoints] == [1]  # what is run again counts no hits


def test_a_small_budget_drops_old_passes_and_every_place_is_reached_still(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BUDGET_BYTES", 1)
    monkeypatch.setattr(history.History, "__init__", _with_budget(1))
    pipe = LoopbackPipe(tiny("mamba2"), [3, 2])
    with pipe.begin_at() as dbg:
        place = dbg.layer()
        dbg.token(5)
        assert "of 1 B" in dbg.reach
        assert dbg.reach.splitlines()[0].startswith("rank 0: pass 0, and from pass 5 on")
        assert same(dbg.back(place), place)
    pipe.unload()


def _with_budget(size: int) -> Callable[..., None]:
    def init(self: Any, budget_bytes: int = size, snapshots: Any = None) -> None:
        self.budget_bytes, self.snapshots = budget_bytes, {} if snapshots is None else snapshots

    return init


def test_appended_caches_cost_nothing_to_remember(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        dbg.token(4)
        assert dbg.reach == "rank 0: from pass 0 on · 0 B of 512 MiB\nrank 1: from pass 0 on · 0 B of 512 MiB"


def test_a_fork_goes_its_own_way(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        here = dbg.until("layers.3.output", token=21)
        other: Debugger = dbg.fork()
        assert same(other.position, here)
        other.run()
        other.close()
        assert same(dbg.position, here)
        dbg.run()
        assert dbg.gen.token_ids == other.gen.token_ids
        assert dbg.gen is not other.gen


def test_trim_cuts_tokens_off_and_the_run_feeds_on_from_there(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        dbg.token(5)
        wanted = dbg.gen.token_ids
        assert short(dbg.trim(2)) == "21 r0 embed_tokens.input"
        assert dbg.gen.token_ids == wanted[:1]
        assert {kv.offset for kv in dbg.position.kv} == {21}
        dbg.token(2)
        assert dbg.gen.token_ids == wanted
        assert short(dbg.trim(15)) == "8 r0 embed_tokens.input"  # into the prompt
        dbg.run()
        assert dbg.gen.token_ids[: len(wanted)] == wanted
    with pipe.begin_at() as dbg, pytest.raises(OptionError, match="0 tokens have been fed, not 3"):
        dbg.trim(3)


def test_a_state_that_is_no_list_of_positions_is_not_trimmed(tiny: Tiny) -> None:
    pipe = LoopbackPipe(tiny("mamba2"), [3, 2])
    with pipe.begin_at() as dbg:
        here = dbg.token(4)
        with pytest.raises(OptionError, match=r"cannot be cut.*dbg\.back"):
            dbg.trim(1)
        assert dbg.position is here
        assert dbg.into().start == here.start
    pipe.unload()


def test_one_can_go_back_from_where_a_pass_raised(tiny: Tiny) -> None:
    def damage(stage: Stage) -> None:
        if stage.rank == 1:
            stage.model.layers[3].self_attn.q_proj.weight = mx.ones((64, 48))

    pipe = LoopbackPipe(tiny("llama"), [3, 2], damage)
    with pipe.begin_at() as dbg, pytest.raises(RunError):
        dbg.run()
    with pipe.pm() as dead:
        assert short(dead.back("layer")) == "0 r0 layers.2.output"
        assert dead.gen.state == "stopped"
        pipe.stages[1].model.layers[3].self_attn.q_proj.weight = mx.ones((64, 64))
        assert dead.run().kind == "end"
    pipe.unload()


def test_a_run_that_was_forgotten_says_so(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        place = dbg.layer()
        dbg.run()
        with pipe.begin_at(max_tokens=1) as other:
            other.run()
        with pytest.raises(RunError, match=r"forgotten this run.*dbg\.restart"):
            dbg.back(place)
