"""A split keeps to the cuts that a model allows."""

import pytest

from mlx_nb.shared.errors import PlanError
from mlx_nb.shared.legal import LegalCuts, choose_counts

SHARED = LegalCuts(
    num_layers=30,
    legal=tuple(range(1, 15)),
    refused={
        cut: f"A cut before layer {cut} separates layers 15–29, which read the KV cache of layer 13."
        for cut in range(15, 30)
    },
)


def test_a_legal_split_stays_as_it_is() -> None:
    assert choose_counts(SHARED, [13, 17], even=False, model="m") == ([13, 17], "")


def test_an_illegal_one_names_the_layers_and_the_nearest_legal_cuts() -> None:
    with pytest.raises(PlanError) as caught:
        choose_counts(SHARED, [20, 10], even=False, model="m")

    assert caught.value.problem == (
        "A cut before layer 20 separates layers 15–29, which read the KV cache of layer 13. Legal cuts near: 13, 14."
    )
    assert caught.value.fix == "Type: %mlx_load m --split 14,16"


def test_an_even_split_moves_to_the_nearest_legal_cuts_and_says_so() -> None:
    counts, why = choose_counts(SHARED, [8, 8, 7, 7], even=True, model="m")

    assert counts == [8, 5, 1, 16]
    assert why.startswith("moved to the nearest legal cuts, 8,5,1,16. A cut before layer 16 separates")


def test_too_few_legal_cuts_are_too_many_ranks() -> None:
    two = LegalCuts(num_layers=4, legal=(1,), refused={2: "No 2.", 3: "No 3."})

    with pytest.raises(PlanError, match=r"cannot be divided over 3 ranks\. No 3\.") as caught:
        choose_counts(two, [1, 2, 1], even=True, model="m")

    assert caught.value.fix == "Load it on 2 ranks: %mlx_load m --ranks 2"
