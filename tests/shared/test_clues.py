"""How a wrong array is wrong, and which of their modules is ours."""

import numpy as np
import pytest

from mlx_nb.shared.clues import clues
from mlx_nb.shared.joining import join_modules

RIGHT = np.random.default_rng(1).normal(size=(1, 12, 16)).astype(np.float32)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (RIGHT * 4, "It is 4 times what it should be, everywhere: 4 = sqrt(16)"),
        (RIGHT[..., ::-1], "same numbers in another order"),
        (np.concatenate([RIGHT[:, :1], RIGHT[:, :-1]], axis=1), "shifted by one"),
        (RIGHT + np.arange(16), "the same vector at every token"),
        (RIGHT * (1 + np.arange(16)), "a factor of its own"),
        (RIGHT * 0, "zero everywhere"),
        (np.where(np.arange(12)[:, None] > 7, -RIGHT, RIGHT), "right up to token 7"),
    ],
)
def test_a_wrong_array_tells_how(wrong: np.ndarray, said: str) -> None:
    assert any(said in clue for clue in clues(wrong, RIGHT, 1, hidden=16))


def test_nothing_is_said_of_noise() -> None:
    noise = np.random.default_rng(2).normal(size=RIGHT.shape)

    assert clues(noise, RIGHT, 1, hidden=16) == []
    # Rather than "1 times what it should be":
    assert clues(RIGHT * (1 + 2e-4 * noise), RIGHT, 1, hidden=16) == []


def test_layers_are_joined_by_number_and_the_rest_by_path() -> None:
    ours = ["lm_head", "model", "model.wte", "model.h.0", "model.h.0.mlp", "model.h.0.rope", "model.h.1"]
    theirs = ["lm_head", "body", "body.wte", "body.blocks.0", "body.blocks.0.mlp", "body.blocks.1"]

    found = join_modules(ours, ["model.h.0", "model.h.1"], theirs, ["body.blocks.0", "body.blocks.1"])

    assert found["model.h.0.mlp"] == "body.blocks.0.mlp"
    assert found["model.wte"] == "body.wte"
    assert found["lm_head"] == "lm_head"
    assert "model.h.0.rope" not in found
