"""The book's page of views has a picture of each, light and dark."""

import re
from pathlib import Path

import pytest

from mlx_nb.client.show import VIEWS

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PAGE = (NOTEBOOKS / "views.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_on_the_page_in_both_themes(view: str) -> None:
    name = "stepper" if view == "step" else view

    assert re.search(rf"^\| \[`{view}\b", PAGE, re.MULTILINE)
    assert f"### {name}\n" in PAGE
    for theme in ("light", "dark"):
        assert f"images/{name}-{theme}.png" in PAGE
        assert 10_000 < (NOTEBOOKS / "images" / f"{name}-{theme}.png").stat().st_size < 200_000
