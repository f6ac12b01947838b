"""Reading KV caches, checked against what was written: each key holds its own position."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlx_nb.engine.kv_read import array_named, named_arrays, positions, read_entry, without_entry
from mlx_nb.shared.kv_report import KVReport


def write(entry, start: int, stop: int, width: int = 4):
    """Feed the positions start to stop at once, each key filled with its own position."""
    keys = mx.broadcast_to(
        mx.arange(start, stop, dtype=mx.float32)[None, None, :, None], (1, 2, stop - start, width)
    )
    entry.update_and_fetch(keys, keys)
    return entry


def write_rows(entry, start: int, stop: int):
    """The same for a batch of two rows, each key filled with its own slot."""
    keys = mx.broadcast_to(
        mx.arange(start, stop, dtype=mx.float32)[None, None, :, None], (2, 2, stop - start, 4)
    )
    entry.update_and_fetch(keys, keys)
    return entry


def held(entry) -> list[int]:
    """The positions that really lie in the keys, in the order of memory."""
    _, keys, used = named_arrays(entry)[0]
    return [int(k) for k in keys[0, 0, :used, 0].tolist()]


@pytest.mark.parametrize("make", [KVCache, ConcatenateKVCache])
def test_plain_entries_hold_every_position(make) -> None:
    entry = write(write(make(), 0, 7), 7, 8)

    report = read_entry(entry, rank=0, layer=3, place=3, expected=8)

    assert list(report.positions) == held(entry) == list(range(8))
    assert (report.offset, report.pending, report.trimmable) == (8, 0, True)
    assert report.buffers[0].shape == (1, 2, 8, 4)


@pytest.mark.parametrize("prompt", [1, 5, 8, 9, 13, 20])
@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("steps", [0, 1, 5, 12])
def test_a_ring_tells_which_position_lies_where(prompt: int, keep: int, steps: int) -> None:
    entry = write(RotatingKVCache(max_size=8, keep=keep), 0, prompt)
    for position in range(prompt, prompt + steps):
        write(entry, position, position + 1)

    assert positions(entry) == held(entry)


def test_a_ring_that_has_turned_reads_as_measured() -> None:
    entry = RotatingKVCache(max_size=8, keep=2)
    for position in range(20):
        write(entry, position, position + 1)

    report = read_entry(entry, rank=0, layer=0, place=0, expected=20)

    assert sorted(report.positions) == [0, 1, 14, 15, 16, 17, 18, 19]
    assert (report.capacity, report.kept, report.offset) == (8, 2, 20)
    assert not report.trimmable


def test_reading_a_ring_by_its_logical_length_would_be_wrong() -> None:
    entry = RotatingKVCache(max_size=8, keep=2)
    for position in range(20):
        write(entry, position, position + 1)

    assert held(entry) != list(range(12, 20))


def test_a_quantised_entry_shows_its_packing() -> None:
    entry = write(QuantizedKVCache(group_size=32, bits=8), 0, 6, width=64)

    report = read_entry(entry, rank=1, layer=0, place=0, expected=6)

    assert report.bits == 8
    assert [buffer.name for buffer in report.buffers][:3] == ["keys.packed", "keys.scales", "keys.biases"]
    assert report.buffers[0].shape[2] == 6


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_entry_is_read_unpacked_too(bits: int) -> None:
    plain, entry = KVCache(), QuantizedKVCache(group_size=32, bits=bits)
    keys, values = (mx.random.normal((1, 2, 6, 64), key=mx.random.key(seed)) for seed in (0, 1))
    for either in (plain, entry):
        either.update_and_fetch(keys, values)
    report = read_entry(entry, rank=1, layer=0, place=0, expected=6)

    read = array_named(entry, "values")

    assert read is not None
    assert mx.abs(read - values).max().item() < 8 / 2**bits
    assert mx.abs(read - keys).max().item() > 1  # the control
    known = report.buffer("keys")
    assert known is not None
    assert (known.shape, known.held_shape, known.dtype) == ((1, 2, 6, 64), (1, 2, 256, 64), "float32")
    assert report.shapes == "[1,2,6,64]"
    assert report.detail == f"{bits}-bit, packed [1,2,6,{2 * bits}]"
    packed = array_named(entry, "keys.packed")
    assert packed is not None
    assert packed.shape == (1, 2, 6, 2 * bits)
    assert array_named(plain, "keys.packed") is None is report.buffer("state 0")


def test_shapes_name_what_is_not_keys_and_what_differs() -> None:
    def shapes(entry) -> str:
        return read_entry(entry, rank=0, layer=0, place=0, expected=5).shapes

    states, latent = ArraysCache(size=2), KVCache()
    states[0], states[1] = mx.zeros((1, 3, 80)), mx.zeros((1, 8, 8, 8))
    latent.update_and_fetch(mx.zeros((1, 1, 5, 16)), mx.zeros((1, 1, 5, 8)))

    assert shapes(KVCache()) == "empty"
    assert shapes(write(KVCache(), 0, 5)) == "[1,2,5,4]"
    assert shapes(latent) == "[1,1,5,16], values [1,1,5,8]"
    assert shapes(states) == "state 0 [1,3,80], state 1 [1,8,8,8]"
    assert (
        shapes(CacheList(states, latent))
        == "0: state 0 [1,3,80], state 1 [1,8,8,8] · 1: [1,1,5,16], values [1,1,5,8]"
    )


def test_a_ring_and_what_has_not_been_run_read_as_what_they_are() -> None:
    entry = RotatingKVCache(max_size=8, keep=2)
    for position in range(20):
        write(entry, position, position + 1)
    ring = read_entry(entry, rank=0, layer=0, place=0, expected=20)

    assert (ring.room, read_entry(KVCache(), rank=0, layer=0, place=0, expected=0).room) == ("ring of 8", "")
    assert ring.detail == f"next slot {entry._idx if entry._idx < 8 else 2} · keeps 2"
    nothing = KVReport(prompt_tokens=0, generated_tokens=0, entries=())
    assert str(nothing) == 'KV cache · nothing has been run yet\n next: pipe.generate("…")'
    assert "no layer has been called yet" in str(
        KVReport(prompt_tokens=5, generated_tokens=0, standing="prefill 0:5", entries=())
    )


def test_a_chunked_entry_starts_where_its_front_was_cut() -> None:
    entry = write(ChunkedKVCache(chunk_size=4), 0, 6)
    entry.maybe_trim_front()
    write(entry, 6, 7)

    assert positions(entry) == held(entry)
    assert positions(entry)[-1] == 6


def test_a_batch_counts_its_rows_and_reads_its_padding_too() -> None:
    entry = write_rows(write_rows(BatchKVCache([1, 3]), 0, 6), 6, 7)

    report = read_entry(entry, rank=0, layer=0, place=0, expected=6)

    assert (report.rows, report.left_padding, report.offset) == ((6, 4), (1, 3), 6)
    assert list(report.positions) == held(entry) == list(range(7))
    assert report.buffers[0].shape == (2, 2, 7, 4)
    assert report.detail == "rows [6, 4] · padding [1, 3]"


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 12])
def test_a_batch_that_rotates_tells_which_slot_lies_where(steps: int) -> None:
    entry = write_rows(BatchRotatingKVCache(8, [1, 3]), 0, 6)
    for slot in range(6, 6 + steps):
        write_rows(entry, slot, slot + 1)

    report = read_entry(entry, rank=0, layer=0, place=0, expected=6 + steps)

    assert list(report.positions) == held(entry)
    assert report.rows == (5 + steps, 3 + steps)
    assert report.capacity == 8
    assert report.ring_at == entry._idx


def test_the_window_of_deepseek_v41_counts_rows_of_its_own_and_shows_the_last() -> None:
    from mlx_lm.models.deepseek_v41 import LayerCache

    entry = LayerCache(window_size=4)
    for start, stop in ((0, 7), (7, 8)):
        entry.update_window(mx.arange(start, stop, dtype=mx.float32)[None, :, None])

    report = read_entry(entry, rank=0, layer=0, place=0, expected=8)

    assert list(report.positions) == [int(k) for k in entry.window[0, :, 0].tolist()] == [4, 5, 6, 7]
    assert (report.offset, report.capacity, report.trimmable) == (8, 4, False)
    assert [buffer.name for buffer in report.buffers] == ["window"]


def test_a_ring_inside_a_tree_shows_where_it_writes() -> None:
    ring = RotatingKVCache(max_size=8, keep=2)
    for position in range(20):
        write(ring, position, position + 1)
    entry = CacheList(ArraysCache(size=1), ring)

    report = read_entry(entry, rank=0, layer=0, place=0, expected=20)

    assert (report.ring_at, report.kept, report.capacity) == (ring._idx, 2, 8)
    assert list(report.positions) == held(ring)


def test_every_class_of_mlx_lm_is_read_here() -> None:
    from mlx_lm.models import cache

    found = {
        name
        for name, kind in vars(cache).items()
        if isinstance(kind, type) and issubclass(kind, cache._BaseCache) and not name.startswith("_")
    }
    assert found == {
        "ArraysCache",
        "BatchKVCache",
        "BatchRotatingKVCache",
        "CacheList",
        "ChunkedKVCache",
        "ConcatenateKVCache",
        "KVCache",
        "QuantizedKVCache",
        "RotatingKVCache",
    }


def test_states_without_positions_say_so() -> None:
    entry = ArraysCache(size=2)
    entry[0] = mx.zeros((1, 3, 8))

    report = read_entry(entry, rank=0, layer=0, place=0, expected=9)

    assert (report.offset, report.capacity, report.positions, report.pending) == (-1, 0, (), 0)
    assert [buffer.name for buffer in report.buffers] == ["state 0"]


def test_a_tree_prints_its_parts() -> None:
    entry = CacheList(write(KVCache(), 0, 5), ArraysCache(size=1))

    report = read_entry(entry, rank=0, layer=0, place=0, expected=5)

    assert report.class_name == "CacheList(KVCache, ArraysCache)"
    assert report.offset == 5
    assert report.buffers[0].name == "0.keys"


def report_of(offsets: dict[tuple[int, int], int]) -> KVReport:
    """A report over two ranks from offsets by (rank, layer)."""
    entries = []
    for (rank, layer), offset in offsets.items():
        entry = write(KVCache(), 0, offset)
        entries.append(read_entry(entry, rank=rank, layer=layer, place=layer, expected=44))
    return KVReport(prompt_tokens=37, generated_tokens=8, entries=tuple(entries))


def test_the_report_prints_as_promised() -> None:
    report = report_of({(0, 0): 44, (0, 1): 44, (1, 2): 43, (1, 3): 43})

    assert str(report).splitlines() == [
        "KV cache · last run · 44 tokens = 37 prompt + 7 of 8 generated (the last is sampled, not fed)",
        "OFFSETS DIFFER: rank 1 is 1 behind rank 0",
        " rank  layers  class    offset  capacity  keys        used/held",
        " 0     0–1     KVCache  44      256       [1,2,44,4]  5.5/32.0 KiB",
        " 1     2–3     KVCache  43 ←    256       [1,2,43,4]  5.4/32.0 KiB",
    ]


def test_an_entry_that_is_never_written_is_no_disagreement_and_one_that_was_lost_is() -> None:
    full = [read_entry(write(KVCache(), 0, 9), rank=0, layer=i, place=i, expected=9) for i in (0, 2)]
    lost = read_entry(KVCache(), rank=0, layer=1, place=1, expected=9)
    left = read_entry(KVCache(), rank=0, layer=1, place=1, expected=9, unused=True)

    def report(entry) -> KVReport:
        return KVReport(prompt_tokens=9, generated_tokens=0, entries=(full[0], entry, full[1]))

    assert report(lost).headline == "OFFSETS DIFFER: layer 1 is 9 behind the others"
    assert report(left).headline == ""
    assert "never written" in str(report(left))


def test_one_layer_that_lags_is_named_and_agreement_has_no_headline() -> None:
    assert (
        report_of({(0, 0): 44, (1, 1): 43, (1, 2): 44}).headline
        == "OFFSETS DIFFER: layer 1 is 1 behind the others"
    )
    assert report_of({(0, 0): 44, (1, 1): 44}).headline == ""


def test_layers_that_read_anothers_say_whose() -> None:
    own = [read_entry(write(KVCache(), 0, 9), rank=0, layer=i, place=i, expected=9) for i in (0, 1)]
    again = read_entry(write(KVCache(), 0, 9), rank=1, layer=2, place=1, expected=9, reads=(1,))
    bare = [without_entry(rank=1, layer=i, reads=(0,)) for i in (3, 4)]

    report = KVReport(prompt_tokens=9, generated_tokens=0, entries=(*own, again, *bare))

    assert report.headline == ""
    assert str(report).splitlines()[2:] == [
        " 0     0–1     KVCache  9       256       [1,2,9,4]  1.1/32.0 KiB",
        " 1     2       KVCache  9       256       [1,2,9,4]  0.6/16.0 KiB  reads layer 1's",
        " 1     3–4     none     –       –         –          0/0 B         reads layer 0's",
    ]
