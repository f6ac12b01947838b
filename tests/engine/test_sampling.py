"""mlx-lm's own samplers, with a random state that belongs to the run."""

from typing import Any

import pytest

from mlx_nb.engine.sampling import Sampler
from mlx_nb.shared.request import GenerateOptions

import mlx.core as mx  # isort: skip
from mlx_lm.sample_utils import make_logits_processors, make_sampler  # isort: skip

DRAWS = 20
OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": {"temp": 0.8},
    "hot": {"temp": 2.5},
    "nucleus": {"temp": 1.0, "top_p": 0.7},
    "top k": {"temp": 1.0, "top_k": 5},
    "min p": {"temp": 1.0, "min_p": 0.1},
    "all": {"temp": 0.9, "top_p": 0.9, "top_k": 30, "min_p": 0.02},
}


@pytest.fixture(scope="module")
def logits() -> list[mx.array]:
    keys = mx.random.split(mx.random.key(5), DRAWS)
    return [mx.random.normal((1, 300), key=key) * 3 for key in keys]


def picked(sampler: Sampler, logits: list[mx.array]) -> list[int]:
    return [sampler.pick(row, [1, 2, 3]) for row in logits]


def by_mlx_lm(options: dict[str, Any], seed: int, logits: list[mx.array]) -> list[int]:
    mx.random.seed(seed)
    sample = make_sampler(**options)
    return [int(sample(row - mx.logsumexp(row, keepdims=True)).item()) for row in logits]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_seed_draws_what_mlx_lm_draws(logits: list[mx.array], name: str) -> None:
    wanted = by_mlx_lm(OPTIONS[name], 7, logits)

    assert picked(Sampler(GenerateOptions(seed=7, **OPTIONS[name])), logits) == wanted
    assert picked(Sampler(GenerateOptions(seed=8, **OPTIONS[name])), logits) != wanted


def test_greedy_takes_the_likeliest(logits: list[mx.array]) -> None:
    assert picked(Sampler(GenerateOptions()), logits) == [int(mx.argmax(row).item()) for row in logits]


def test_two_samplers_in_turns_do_not_disturb_each_other(logits: list[mx.array]) -> None:
    one, two = (Sampler(GenerateOptions(temp=1.0, seed=seed)) for seed in (1, 2))

    drawn = [(one.pick(row, []), two.pick(row, [])) for row in logits]

    assert [a for a, _ in drawn] == by_mlx_lm({"temp": 1.0}, 1, logits)
    assert [b for _, b in drawn] == by_mlx_lm({"temp": 1.0}, 2, logits)


def test_the_global_random_state_is_left_alone(logits: list[mx.array]) -> None:
    def others() -> list[float]:
        return [float(mx.random.uniform().item()) for _ in range(3)]

    mx.random.seed(11)
    wanted = others()
    mx.random.seed(11)
    first = float(mx.random.uniform().item())
    picked(Sampler(GenerateOptions(temp=1.0, seed=3)), logits)

    assert [first, *others()[:2]] == wanted
    mx.random.seed(11)
    make_sampler(temp=1.0)(logits[0])  # the control: mlx-lm's own sampler moves it
    assert others() != wanted


def test_without_a_seed_every_run_draws_its_own(logits: list[mx.array]) -> None:
    mx.random.seed(0)
    one = picked(Sampler(GenerateOptions(temp=2.0)), logits)
    mx.random.seed(0)

    assert picked(Sampler(GenerateOptions(temp=2.0)), logits) != one


def test_a_repetition_penalty_is_mlx_lms() -> None:
    row = mx.zeros((1, 10)).at[0, 4].add(5.0).at[0, 6].add(4.5)
    (process,) = make_logits_processors(repetition_penalty=1.5)

    found = Sampler(GenerateOptions(repetition_penalty=1.5)).pick(mx.array(row), [1, 4])

    assert found == 6 == int(mx.argmax(process(mx.array([1, 4]), mx.array(row))).item())
    assert Sampler(GenerateOptions()).pick(row, [1, 4]) == 4
