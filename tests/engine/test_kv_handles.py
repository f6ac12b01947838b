"""What a notebook reads of KV caches by name: states, quantised keys and values, and what to type where there are none."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_nb.client.kv import KVCaches
from mlx_nb.engine.kv import state_arrays
from mlx_nb.shared.errors import RunError
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]


@contextmanager
def run_of(folder: Path, **options: Any) -> Iterator[tuple[LoopbackPipe, KVCaches]]:
    """A pipe after a run of the prompt, and its KV caches."""
    pipe = LoopbackPipe(folder, [3, 2])
    try:
        pipe.begin_at(**options).run()
        yield pipe, pipe.kv_cache()
    finally:
        pipe.unload()


def test_states_are_read_by_number_and_by_name(tiny: Tiny) -> None:
    with run_of(tiny("mamba2")) as (pipe, kv):
        first, second = (np.array(a) for a in state_arrays(pipe.stages[1].last_kv[4])[:2])

        assert np.array_equal(kv[4].state(0).numpy(), first)
        assert np.array_equal(kv[4]["state 1"][0, 1], second[0, 1])
        assert kv[4].names == ("state 0", "state 1")
        assert not np.array_equal(kv[4].state(1).numpy(), kv[3].state(1).numpy())  # the control
        assert repr(kv[4]).startswith("ArraysCache of layer 4 · rank 1 · state 0 [1,")
        assert "-1" not in repr(kv[4])
        assert kv.table()[0][5] == "states"


@pytest.mark.parametrize("wrong", ["state 2", "keys.packed", 0])
def test_a_name_that_is_not_there_is_answered_with_those_that_are(tiny: Tiny, wrong: Any) -> None:
    with run_of(tiny("mamba2")) as (_, kv):
        for read in (lambda: kv[4][wrong], lambda: kv[4].keys[0, 0]):
            with pytest.raises(RunError, match=r"Layer 4 \(ArraysCache, rank 1\) has no") as refused:
                read()
            assert refused.value.fix == 'Type: kv[4]["state 0"] or kv[4]["state 1"]'


def test_quantised_keys_and_values_come_unpacked_and_packed(tiny: Tiny) -> None:
    wish = {"kv_group_size": 32, "quantized_kv_start": 0}
    folder = tiny("llama", head_dim=32)
    with run_of(folder) as (_, kv):
        plain = kv[4].keys.numpy(), kv[4].values.numpy()
    with run_of(folder, kv_bits=8, **wish) as (_, kv):
        read = kv[4].keys, kv[4].values

        for handle, wanted in zip(read, plain, strict=True):
            assert handle.shape == wanted.shape
            # Later layers also see what quantising did to the earlier ones.
            assert np.abs(handle.numpy() - wanted).mean() < 0.03 * np.abs(wanted).mean()
        assert np.array_equal(read[0][0, 1, -1], read[0].numpy()[0, 1, -1])
        assert np.abs(read[0].numpy() - plain[1]).mean() > 0.3 * np.abs(plain[0]).mean()  # the control
        assert kv[4]["keys.packed"].numpy().dtype == np.uint32
        assert "8-bit, packed [1," in repr(kv[4])
