"""Breakpoints as data: where they apply, how they count, what a condition may be."""

import pytest

from mlx_nb.shared.breaks import Break, parse_condition
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.strides import Event

HERE = Event(kind="output", module="model.layers.3.mlp", depth=3, rank=1, start=8, stop=16)


@pytest.mark.parametrize(
    ("wishes", "covered"),
    [
        ({"pattern": "*"}, True),
        ({"pattern": "model.layers.*.mlp.output"}, True),
        ({"pattern": "model.layers.3.mlp.input"}, False),
        ({"pattern": "*", "rank": 0}, False),
        ({"pattern": "*", "rank": 1, "token": 15}, True),
        ({"pattern": "*", "token": 16}, False),
        ({"pattern": "*", "enabled": False}, False),
    ],
)
def test_a_breakpoint_covers_its_site_rank_and_token(wishes: dict[str, object], covered: bool) -> None:
    one = Break(number=1, site="", **wishes)  # type: ignore[arg-type]

    assert one.covers(HERE) is covered


def test_everywhere_is_every_exit_the_logits_too_but_no_entry() -> None:
    everywhere = Break(number=1, site="*", pattern="*")

    assert everywhere.covers(Event(kind="output", module="", depth=0))
    assert not everywhere.covers(Event(kind="input", module="model.norm", depth=1))


def test_hits_are_counted_ignored_and_spent() -> None:
    one = Break(number=1, site="*", pattern="*", once=True, ignore=2)
    seen = []
    for _ in range(3):
        halt, one = one.hit()
        seen.append((halt, one.hits, one.ignore, one.enabled))

    assert seen == [(False, 1, 1, True), (False, 2, 0, True), (True, 3, 0, False)]


@pytest.mark.parametrize(
    ("when", "kind", "statistics"),
    [
        ("", "", ()),
        ("nonfinite", "nonfinite", ()),
        ("shape", "changes", ()),
        ("dtype changes", "changes", ()),
        ("max > 100", "expression", ("max",)),
        ("absmax>3 and mean<0", "expression", ("mean", "absmax")),
        ("max(shape) > 3", "expression", ()),  # Python's own function
    ],
)
def test_conditions_are_told_apart(when: str, kind: str, statistics: tuple[str, ...]) -> None:
    found = parse_condition(when)

    assert (found.kind, found.statistics) == (kind, statistics)


@pytest.mark.parametrize("wrong", ["max >", "x = 3", "if", "a b"])
def test_what_is_no_condition_is_refused_with_an_example(wrong: str) -> None:
    with pytest.raises(
        OptionError, match=r"is no condition\. Type nonfinite, shape, dtype, or an expression"
    ):
        parse_condition(wrong)


def test_an_option_after_if_says_that_if_comes_last() -> None:
    with pytest.raises(
        OptionError, match=r"takes the rest of the line, --token too. Put --if last: --token … --if max > 5"
    ):
        parse_condition("max > 5 --token 2")
