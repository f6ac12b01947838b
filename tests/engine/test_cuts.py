"""Where a cut is illegal, it is refused in words; made-up models show each way to leak."""

from collections import namedtuple
from typing import Any

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from mlx_nb.engine.cuts import legal_cuts
from mlx_nb.engine.pytree import flatten, unflatten
from mlx_nb.engine.rehearse import undisturbed
from mlx_nb.shared.errors import ModelError
from tests.engine.architectures import build_blank

WIDTH = 4


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        return x + self.linear(x)


class Remembers(Layer):
    """Leaves what it made on itself, where a later layer's caller finds it."""

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        self._made = self.linear(x)
        return x + self._made


class State(Layer):
    """Keeps a state in its KV cache entry, or reads another layer's."""

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        if cache[0] is None:
            cache[0] = self.linear(x)
        return x + self.linear(x) * cache[0]


class Base(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.layers = layers
        self.head = nn.Linear(WIDTH, 11)

    def make_cache(self) -> list[Any]:
        return [KVCache() for _ in self.layers]

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        h = self.embed(inputs)
        for index, layer in enumerate(self.layers):
            h = self.step(index, layer, h, cache)
        return self.head(h)

    def step(self, index: int, layer: Any, h: mx.array, cache: list[Any]) -> mx.array:
        return layer(h, cache[index])


class LeaksAnAttribute(Base):
    def step(self, index: int, layer: Any, h: mx.array, cache: list[Any]) -> mx.array:
        return layer(h + self.layers[1]._made if index == 4 else h, cache[index])


class SharesAState(Base):
    def make_cache(self) -> list[Any]:
        return [ArraysCache(1) for _ in self.layers]

    def step(self, index: int, layer: Any, h: mx.array, cache: list[Any]) -> mx.array:
        return layer(h, cache[1 if index in (3, 4) else index])


def test_every_cut_of_a_plain_model_is_legal_and_forwards_nothing() -> None:
    cuts = legal_cuts(Base([Layer() for _ in range(5)]))

    assert cuts.legal == (1, 2, 3, 4)
    assert not any(cuts.forwards.values())


def test_what_goes_round_the_hop_makes_a_cut_illegal() -> None:
    cuts = legal_cuts(LeaksAnAttribute([Remembers() for _ in range(6)]))

    assert cuts.legal == (1, 5)
    assert (
        cuts.refused[3]
        == "A cut before layer 3 separates layer 4, which reads what layer 1 made besides the return value."
    )


def test_a_state_that_later_layers_read_makes_a_cut_illegal() -> None:
    cuts = legal_cuts(SharesAState([State() for _ in range(7)]))

    assert cuts.legal == (1, 5, 6)
    assert cuts.refused[2] == "A cut before layer 2 separates layers 3–4, which read the KV cache of layer 1."


def test_layers_that_are_one_object_are_refused() -> None:
    layer = Layer()
    cuts = legal_cuts(Base([Layer(), layer, layer]))

    assert cuts.legal == ()
    assert "the same layer in several places" in cuts.refused[1]


def test_a_layer_that_returns_more_than_data_is_refused() -> None:
    class Odd(Layer):
        def __call__(self, x: mx.array, cache: Any = None) -> Any:
            return len, x

    class Unpacks(Base):
        def step(self, index: int, layer: Any, h: mx.array, cache: list[Any]) -> mx.array:
            return layer(h)[1]

    cuts = legal_cuts(Unpacks([Odd() for _ in range(3)]))

    assert cuts.legal == ()
    assert cuts.refused[1] == "Layer 0 returns a tuple, which cannot cross to another rank."


def test_a_rehearsal_leaves_a_model_as_it_was() -> None:
    model = LeaksAnAttribute([Remembers() for _ in range(6)])

    legal_cuts(model)

    assert all(type(layer) is Remembers for layer in model.layers)
    assert not any(hasattr(layer, "_made") for layer in model.layers)
    with undisturbed(model):
        model(mx.zeros((1, 2), dtype=mx.int32), model.make_cache())
        assert hasattr(model.layers[0], "_made")
    assert not hasattr(model.layers[0], "_made")


# What crosses -------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


class Blocks:
    def __init__(self) -> None:
        raise AssertionError("an object crosses without its code being called")


def test_objects_and_named_tuples_cross_with_their_classes() -> None:
    blocks = object.__new__(Blocks)
    blocks.raw, blocks.count = mx.array([1.0, 2.0]), 3

    header, arrays = flatten((Pair(mx.array([4]), None), blocks, {"seen": [blocks.raw]}))
    pair, other, rest = unflatten(header, arrays)

    assert type(pair) is Pair
    assert pair.left.item() == 4
    assert type(other) is Blocks
    assert other.raw.tolist() == [1.0, 2.0]
    assert other.count == 3
    assert rest["seen"][0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), KVCache(), len, object()])
def test_what_is_more_than_data_does_not_cross(thing: Any) -> None:
    with pytest.raises(ModelError, match="cannot cross to the next rank"):
        flatten([thing])


def test_a_class_that_is_not_loaded_here_is_named() -> None:
    with pytest.raises(ModelError, match=r"nowhere\.Thing"):
        unflatten('{"o":["nowhere","Thing",[]]}', [])


def test_layers_that_read_the_keys_and_values_of_earlier_ones_are_known() -> None:
    shared = {5: (4,), 6: (4,), 7: (2,)}
    assert legal_cuts(build_blank("gemma3n")).reads_kv_of == shared  # through the KV cache
    assert legal_cuts(build_blank("gemma4_text")).reads_kv_of == shared  # through what the layers return
    for name in ("llama", "gemma3_text", "mamba2", "rwkv7", "deepseek_v3", "jamba"):
        assert legal_cuts(build_blank(name)).reads_kv_of == {}
