"""Every stride from every situation on real ranks: where the run then stands, and that the next one is right."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.debugger import Debugger
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import RankLostError, RunError, RunFinished
from mlx_nb.shared.position import Position
from tests.cluster.conftest import loaded
from tests.ctrl_c import ctrl_c

pytestmark = [
    pytest.mark.cluster,
    # Ctrl-C may fall into psutil's reading of a file, which Python then closes with a warning.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

IDS = [(place * 7) % 101 for place in range(21)]
CHUNKS = {"prefill_step_size": 8, "temp": 0.0}
SITE, TARGET = "layers.2.self_attn.output", "layers.3.mlp.output"
STRIDES = ("into", "over", "out", "layer", "rank", "token", "run", "until", "back", "restart")
SITUATIONS = ("prefill", "decode", "breakpoint", "exception", "ctrl-c")
BEGIN, END = -10, -20


@dataclass(frozen=True, slots=True)
class Stops:
    """A tiny model over real ranks, and every stop of its second pass, as `into` came to them."""

    pipe: Pipe
    all: list[Position]
    tokens: list[int]

    def place(self, position: Position) -> int:
        """Which of them a position is."""
        key = position.rank, position.site, position.call
        (same,) = (n for n, one in enumerate(self.all) if (one.rank, one.site, one.call) == key)
        assert position.tick in (self.all[same].tick, 0)  # where a pass raised it has none
        return same

    def after(self, place: int, stride: str) -> tuple[int, int]:
        """Where a stride ends by its definition: how many passes on, and which stop there."""
        here, later = self.all[place], list(enumerate(self.all))[place + 1 :]

        begin = next(n for n, one in enumerate(self.all) if one.site == "model.embed_tokens.input")
        if place < begin and stride in ("over", "out", "token"):
            return 0, begin  # no stride but into skips the begin of a pass

        def first(*wanted: int) -> tuple[int, int]:
            return (0, wanted[0]) if wanted else (1, begin)

        match stride:
            case "into":
                return first(*(n for n, _ in later)) if later else (1, 0)
            case "over" if here.kind == "input":
                return first(*(n for n, one in later if one.kind == "output" and one.module == here.module))
            case "over":
                return first(*(n for n, one in later if one.depth <= here.depth))
            case "out":
                return first(*(n for n, one in later if one.kind == "output" and one.depth < here.depth))
            case "token":
                return 1, begin
            case "back":
                return (0, place - 1) if place else (-1, len(self.all) - 1)
            case "restart":
                return BEGIN, begin
            case "run":
                return END, 0
        wanted = {
            "layer": lambda one: one.kind == "output" and one.module.count(".") == 2,
            "rank": lambda one: one.kind == "recv",
            "until": lambda one: one.site == f"model.{TARGET}",
        }[stride]
        ahead = [n for n, one in enumerate(self.all) if wanted(one)]
        return next(((0, n) for n in ahead if n > place), (1, ahead[0]))


@pytest.fixture(scope="module", params=["cluster2", "tcp3"])
def stops(request: pytest.FixtureRequest, tiny_folders: Path) -> Iterator[Stops]:
    """Two ranks over shared memory, three over TCP."""
    cluster: Cluster = request.getfixturevalue(request.param)
    with loaded(cluster, tiny_folders / "qwen3") as pipe:
        tokens = pipe.generate(IDS, max_tokens=4, **CHUNKS).token_ids
        with pipe.debug(IDS, max_tokens=4, **CHUNKS) as dbg:
            dbg.until("norm.output")
            found = [dbg.into()]
            while found[-1].index < 2:
                found.append(dbg.into())
            found = [one for one in found if one.index == 1]
        assert [one.kind for one in found].count("recv") == pipe.num_ranks - 1
        yield Stops(pipe, found, tokens)
        assert {info.state for info in pipe.cluster.ranks} == {"idle"}


@contextmanager
def standing(pipe: Pipe, situation: str) -> Iterator[Debugger]:
    """A run that stands there."""
    match situation:
        case "breakpoint":
            pipe.break_at(SITE, token=len(IDS) + 1)
            assert pipe.generate(IDS, max_tokens=4, **CHUNKS).state == "stopped"
            pipe.breakpoints.delete()
            assert current.dbg is not None
            dbg = current.dbg
        case "exception":
            rank = next(shard.rank for shard in pipe.plan.shards if 2 in shard.layers)
            there = pipe.cluster[rank]
            there.execute(
                "import mlx.core as mx\nlayer = model.layers[2].self_attn.o_proj\n"
                "good = layer.weight\nlayer.weight = mx.zeros((64, 48))",
                block=True,
            )
            with pytest.raises(RunError):
                pipe.generate(IDS, max_tokens=4, **CHUNKS)
            there.execute("layer.weight = good", block=True)
            dbg = pipe.pm()
        case "ctrl-c":
            dbg = pipe.debug(IDS, max_tokens=3000, **CHUNKS)
            with ctrl_c(0.6):
                dbg.run()
        case _:
            dbg = pipe.debug(IDS, max_tokens=4, **CHUNKS)
            dbg.until(SITE, token=8 if situation == "prefill" else len(IDS) + 1)
    with dbg:
        yield dbg


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_stride_ends_where_it_should_and_the_next_run_is_right(stops: Stops, situation: str) -> None:
    pipe = stops.pipe
    for stride in STRIDES:
        if (situation, stride) == ("ctrl-c", "run"):
            continue  # thousands of tokens
        with standing(pipe, situation) as dbg:
            here = dbg.position
            lies = situation == "exception"
            passes, place = stops.after(stops.place(here), stride)
            if lies and stride not in ("back", "restart"):
                with pytest.raises(RunFinished, match=r"The pass raised at .* it cannot go on"):
                    dbg.until(TARGET) if stride == "until" else getattr(dbg, stride)()
                passes, place = 0, stops.place(here)
            elif lies and stride == "back":
                dbg.back("into")
                place = stops.place(here)  # the entry of what raised
            elif stride in ("until", "back"):
                dbg.until(TARGET) if stride == "until" else dbg.back("into")
            else:
                getattr(dbg, stride)()

            found = dbg.position
            cell = f"{situation} × {stride}: from {here.where} to {found.where}"
            if passes == END:
                assert (found.kind, dbg.gen.token_ids) == ("end", stops.tokens), cell
            else:
                index = 0 if passes == BEGIN else here.index + passes
                assert (found.index, stops.place(found)) == (index, place), cell
                length = found.stop - found.start
                for kv in found.ranks:  # the ranks before have written the pass, those behind have not
                    pending = 0 if kv.rank < found.rank else length
                    assert kv.rank == found.rank or kv.pending == pending, cell
            states = [info.state for info in pipe.cluster.ranks]
            assert states == ["idle"] * pipe.num_ranks, cell
            assert pipe.generate(IDS, max_tokens=4, **CHUNKS).token_ids == stops.tokens, cell
            assert dbg.position.where == found.where, cell
            if not dbg.done and dbg.gen.state != "failed" and situation != "ctrl-c":
                dbg.run()
                assert dbg.gen.token_ids == stops.tokens, cell


def again_and_again(dbg: Debugger, stride: str) -> None:
    """A stride until it fails: it may lead over a living rank at first."""
    for _ in range(100):
        if stride in ("until", "back"):
            dbg.until(TARGET) if stride == "until" else dbg.back("into")
        else:
            getattr(dbg, stride)()


@pytest.mark.soak
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("split", "transport"), [([2, 3], ""), ([1, 2, 2], "btl self,tcp")])
def test_with_a_dead_rank_every_stride_says_so_and_a_restart_makes_it_right(
    split: list[int], transport: str, tiny_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if transport:
        monkeypatch.setenv("MLX_NB_MCA", transport)
    folder = str(tiny_folders / "qwen3")
    with Cluster.start(ranks=len(split)) as cluster:
        pipe = cluster.load(folder, split=split)
        wanted = pipe.generate(IDS, max_tokens=4, **CHUNKS).token_ids
        for victim in range(1, len(split)):
            dbg = pipe.debug(IDS, max_tokens=4, **CHUNKS)
            dbg.until(SITE, token=8)
            os.kill(cluster.ranks[victim].pid, signal.SIGKILL)

            for stride in STRIDES:
                began_s = time.monotonic()
                with pytest.raises(RankLostError, match=rf"Rank {victim} .* is lost"):
                    again_and_again(dbg, stride)
                assert time.monotonic() - began_s < 15, stride
            assert f"closed\n{dbg.position.where}" in repr(dbg)  # where it stood last
            with pytest.raises(RankLostError, match=r"%mlx_cluster (re)?start"):
                pipe.generate(IDS, max_tokens=4, **CHUNKS)

            cluster.restart()
            pipe = cluster.load(folder, split=split)
            assert {info.state for info in cluster.ranks} == {"idle"}
            assert pipe.generate(IDS, max_tokens=4, **CHUNKS).token_ids == wanted
