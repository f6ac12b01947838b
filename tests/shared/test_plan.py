"""Cutting layers into shards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_nb.shared.errors import PlanError
from mlx_nb.shared.ids import LayerIndex
from mlx_nb.shared.plan import Plan, split_evenly, split_layers


@pytest.mark.parametrize("num_ranks", range(1, 9))
def test_every_layer_lands_on_exactly_one_rank(num_ranks: int) -> None:
    for num_layers in range(num_ranks, 130):
        shards = split_layers(num_layers, num_ranks)

        assert [layer for shard in shards for layer in shard.layers] == list(range(num_layers))
        sizes = [len(shard.layers) for shard in shards]
        assert max(sizes) - min(sizes) <= 1
        assert sizes == sorted(sizes, reverse=True)  # a remainder goes to the first ranks
        assert [shard.rank for shard in shards] == list(range(num_ranks))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_a_split_is_taken_as_it_is(counts: list[int]) -> None:
    shards = split_layers(sum(counts), len(counts), counts)

    assert [len(shard.layers) for shard in shards] == counts
    assert [shard.is_first for shard in shards] == [True] + [False] * (len(counts) - 1)
    assert [shard.is_last for shard in shards] == [False] * (len(counts) - 1) + [True]


@pytest.mark.parametrize(
    ("layers", "ranks", "split", "wanted"),
    [
        (30, 2, [14, 14], "--split 14,14 covers 28 layers; M has 30. Type: %mlx_load M --split 14,16"),
        (30, 2, [20, 20], "--split 20,20 covers 40 layers; M has 30. Type: %mlx_load M --split 20,10"),
        (30, 2, [40, 1], "--split 40,1 covers 41 layers; M has 30. Type: %mlx_load M --split 15,15"),
        (30, 2, [10, 10, 10], "--split 10,10,10 names 3 ranks; 2 take part. Type: %mlx_load M --split 15,15"),
        (
            30,
            3,
            [0, 15, 15],
            "--split 0,15,15 leaves a rank without layers. Type: %mlx_load M --split 10,10,10",
        ),
        (30, 2, [31, -1], "--split 31,-1 leaves a rank without layers. Type: %mlx_load M --split 15,15"),
        (3, 4, "even", "4 ranks are more than the model's 3 layers. Type: %mlx_load M --ranks 3"),
    ],
)
def test_a_split_that_does_not_fit_says_one_that_does(
    layers: int, ranks: int, split: str | list[int], wanted: str
) -> None:
    with pytest.raises(PlanError) as error:
        split_layers(layers, ranks, split, model="M")

    assert str(error.value) == wanted


def test_no_ranks_and_unknown_splits_are_refused() -> None:
    with pytest.raises(PlanError, match=r"over 0 ranks\. Take from 1 to 30 ranks"):
        split_evenly(30, 0)
    with pytest.raises(PlanError, match="There is no split 'odd'"):
        split_layers(30, 2, "odd")


def test_a_plan_knows_who_holds_a_layer() -> None:
    plan = Plan(model="M", shards=split_layers(30, 3, [7, 12, 11]))

    assert [plan.rank_of(LayerIndex(layer)) for layer in (0, 6, 7, 18, 19, 29)] == [0, 0, 1, 1, 2, 2]
    for layer in (30, -1):
        with pytest.raises(PlanError, match=f"M has no layer {layer}; its layers are 0–29"):
            plan.rank_of(LayerIndex(layer))


def test_a_plan_prints_a_line_a_rank() -> None:
    lines = repr(Plan(model="M", shards=split_layers(30, 2), dtype="float32", reason="even")).splitlines()

    assert lines[0] == "Plan M · 30 layers · 2 ranks · float32"
    assert [line.split("  ")[-1].strip() for line in lines[1:3]] == [
        "embed, layers 0–14",
        "layers 15–29, norm, head",
    ]
    assert lines[-1] == " cut: even"
