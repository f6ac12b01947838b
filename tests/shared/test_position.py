"""What a position prints: the blocks of the public surface, to the letter."""

from dataclasses import replace

from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.position import Argument, Hop, KVOffset, Position, RankKV, Source, Summary

QUERIES = Summary(
    shape=(1, 9, 37, 64), axes=("B", "H", "L", ""), dtype="float32", size_bytes=85248,
    min=-3.1, min_at=(0, 1, 2, 3), mean=0.0, rms=1.0, max=4.4, max_at=(0, 0, 0, 0), nan=0, inf=0,
)  # fmt: skip

ROPE = Position(
    phase="prefill",
    index=0,
    start=0,
    stop=37,
    rank=Rank(1),
    site="model.layers.15.self_attn.rope#1.input",
    kind="input",
    module="model.layers.15.self_attn.rope",
    layer=LayerIndex(15),
    depth=4,
    repeated=True,
    args=(Argument(name="x", summary=QUERIES), Argument(name="offset", text="0")),
    source=Source(
        path="/site-packages/mlx_lm/models/llama.py",
        function="Attention.__call__",
        line=90,
        last_line=90,
        first=89,
        lines=(
            "        if cache is not None:",
            "            queries = self.rope(queries, offset=cache.offset)",
        ),
    ),
    kv=(KVOffset(layer=LayerIndex(15), class_name="KVCache", offset=0, written=False),),
    ranks=(
        RankKV(rank=Rank(0), offset=37, layers_written=15, layers=15),
        RankKV(rank=Rank(1), offset=0, pending=37, layers=15),
    ),
)


def test_a_position_inside_a_module_prints_its_block() -> None:
    assert str(ROPE) == (
        "prefill 0:37 · rank 1 · model.layers.15.self_attn.rope#1.input\n"
        " args  x  [B 1, H 9, L 37, 64] float32  min -3.10  mean 0  max 4.40  NaN 0\n"
        "       offset=0\n"
        " code  llama.py:90  → queries = self.rope(queries, offset=cache.offset)\n"
        " kv    rank 0: 37 written · rank 1: 37 pending"
    )
    assert repr(ROPE) == str(ROPE)
    assert ROPE.summary is QUERIES


def test_an_exit_prints_its_value() -> None:
    left = replace(
        ROPE, kind="output", site="model.layers.15.output", args=(Argument(name="out", summary=QUERIES),)
    )

    assert str(left).splitlines()[1].startswith(" value  out  [B 1, H 9, L 37, 64] float32")


def test_a_crossing_prints_its_hop() -> None:
    hop = Hop(source=Rank(0), target=Rank(1), size_bytes=85248, seconds=0.0021)
    recv = replace(ROPE, kind="recv", site="recv", module="", source=None, hop=hop, args=())

    assert str(recv) == (
        "prefill 0:37 · rank 1 · recv\n"
        " hop  rank 0 → rank 1 · 83 KiB · 2.1 ms\n"
        " kv   rank 0: 37 written · rank 1: 37 pending"
    )


def test_kv_texts() -> None:
    def text(**fields: int) -> str:
        return RankKV(rank=Rank(0), **fields).text

    assert text(offset=40) == "40 written"
    assert text(offset=0, pending=3, layers=15) == "3 pending"
    assert text(offset=0, pending=3, layers_written=4, layers=15) == "3 pending in 11 of 15 layers"
    assert text(offset=37, pending=1, layers=15) == "37 written + 1 pending"
    assert (
        text(offset=37, pending=1, layers_written=4, layers=15) == "37 written + 1 pending in 11 of 15 layers"
    )


def test_written_is_what_every_layer_has() -> None:
    rows = [
        KVOffset(layer=LayerIndex(i), class_name="KVCache", offset=o, written=True)
        for i, o in enumerate((9, 9, 0, -1))
    ]

    assert replace(ROPE, kv=tuple(rows)).written == 0
    assert replace(ROPE, kv=tuple(rows[:2])).written == 9
    assert replace(ROPE, kv=tuple(rows[3:])).written == 0  # states that count no positions


def test_numbers_of_integers_are_whole_and_infinities_are_told() -> None:
    ids = replace(QUERIES, shape=(1, 3), axes=("B", "L"), dtype="int32", min=1, max=49000)
    assert str(ids) == "[B 1, L 3] int32  min 1  max 49000  NaN 0"
    assert str(replace(QUERIES, nan=2, inf=1)).endswith("NaN 2  Inf 1")
