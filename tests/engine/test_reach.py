"""Which parameters an output depends on, out of MLX's own graph."""

from mlx_nb.engine.reach import reachable

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
from mlx.utils import tree_flatten  # isort: skip


def test_only_what_an_output_reads_is_found() -> None:
    weights = {name: mx.random.normal((4, 4)) for name in ("a", "b", "c", "unused")}
    x = mx.zeros((2, 4))
    first = x @ weights["a"]
    second = mx.softmax(first @ weights["b"]) + x @ weights["c"]

    assert reachable([first], weights) == {"a"}
    assert reachable([second], weights) == {"a", "b", "c"}
    assert reachable([first, x @ weights["c"]], weights) == {"a", "c"}
    assert reachable([x], weights) == set()


def test_a_tied_embedding_is_found_on_both_ends() -> None:
    embedding = nn.Embedding(10, 4)
    norm = nn.RMSNorm(4)
    parameters = {f"embed.{k}": v for k, v in tree_flatten(embedding.parameters())}
    parameters |= {f"norm.{k}": v for k, v in tree_flatten(norm.parameters())}

    assert reachable([embedding(mx.array([[1, 2]]))], parameters) == {"embed.weight"}
    assert reachable([embedding.as_linear(norm(mx.zeros((1, 2, 4))))], parameters) == set(parameters)


def test_a_parameters_own_history_is_not_followed() -> None:
    stored = mx.random.normal((4, 4))
    cast = stored.astype(mx.float16)

    assert reachable([mx.zeros((1, 4), dtype=mx.float16) @ cast], {"cast": cast, "stored": stored}) == {
        "cast"
    }


def test_names_with_dots_and_digits_are_kept() -> None:
    weights = {f"model.layers.{i}.self_attn.q_proj.weight": mx.random.normal((2, 2)) for i in range(12)}

    assert reachable([mx.zeros((1, 2)) @ weights["model.layers.11.self_attn.q_proj.weight"]], weights) == {
        "model.layers.11.self_attn.q_proj.weight"
    }
