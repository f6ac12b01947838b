"""Records out of files: what fits is taken as it is, anything else is refused."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from mlx_nb.shared.from_json import build


@dataclass(frozen=True)
class Part:
    name: str
    spans: tuple[tuple[int, int], ...]
    error: float | None = None


@dataclass(frozen=True)
class Whole:
    count: int
    held: bool
    parts: tuple[Part, ...]
    prompts: list[tuple[int, ...]]


WHOLE = Whole(3, True, (Part("a", ((0, 4), (4, 5)), 1e-3), Part("b", ())), [(1, 2), ()])


def test_what_was_written_comes_back() -> None:
    assert build(Whole, json.loads(json.dumps(asdict(WHOLE)))) == WHOLE


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("count", True),
        ("count", 1.0),
        ("count", None),
        ("held", 1),
        ("held", "true"),
        ("parts", {}),
        ("parts", ["a"]),
        ("parts", "ab"),
        ("parts", [{"name": "a"}]),
        ("parts", [{"name": 1, "spans": []}]),
        ("parts", [{"name": "a", "spans": [[0, 1, 2]]}]),
        ("parts", [{"name": "a", "spans": [["0", 1]]}]),
        ("parts", [{"name": "a", "spans": [], "error": "small"}]),
        ("prompts", [3]),
        ("prompts", [[None]]),
        ("more", 1),
    ],
)
def test_what_does_not_fit_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError):
        build(Whole, {**json.loads(json.dumps(asdict(WHOLE))), key: value})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="Whole lacks count"):
        build(Whole, {})
