"""Chromium, a page that must stay silent, and one widget in it."""

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def load(name: str) -> ModuleType:
    """A neighbour of this file: pytest imports by file here, so that tests have no package."""
    key = f"mlx_nb_tests_browser_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, HERE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[key] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[key]


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that fails its test if anything is logged as a problem or fetched from anywhere."""
    context = chromium.new_context(viewport={"width": 944, "height": 900})
    page = context.new_page()
    page.problems = problems = load("bridge").watch(page)
    yield page
    context.close()
    assert problems == []


@pytest.fixture(scope="session")
def states() -> ModuleType:
    return load("states")


@pytest.fixture
def open_view(page: Any, states: ModuleType) -> Callable[..., Any]:
    """``open_view("mid_prefill")``: the real widget with that state, in the page."""

    def open_named(name: str, **options: Any) -> Any:
        from mlx_nb.widgets.stepper import StepperView

        state, preview = states.make(name)
        return load("bridge").Bridge(page, StepperView(state=state, preview=preview)).open(**options)

    return open_named


@pytest.fixture
def open_widget(page: Any) -> Callable[..., Any]:
    """``open_widget(TensorView(state))``: any of the views, in the page."""
    return lambda widget, **options: load("bridge").Bridge(page, widget).open(**options)


@pytest.fixture(scope="session")
def looks() -> ModuleType:
    """What can be measured of a view's looks: ``page.evaluate(looks.CONTRASTS)``."""
    return load("looks")


@pytest.fixture
def shoot(page: Any, tmp_path: Path) -> Callable[[str], None]:
    """``shoot("name")`` keeps a picture for human eyes, in $MLX_NB_SCREENSHOTS or a temporary folder."""
    folder = Path(os.environ.get("MLX_NB_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png", full_page=True)


@pytest.fixture
def dressed(looks: ModuleType, jupyterlab: Callable[[str], None], shoot: Callable[[str], None]) -> Any:
    """``dressed(view, "dark", "lens-dark")``: a picture in that theme, and every text with its contrast."""

    def dress(view: Any, theme: str, name: str) -> list[tuple[float, str]]:
        jupyterlab(theme)
        view.page.wait_for_timeout(100)
        shoot(name)
        return view.page.evaluate(looks.CONTRASTS)

    return dress


@pytest.fixture
def squeezed(looks: ModuleType, shoot: Callable[[str], None]) -> Any:
    """``squeezed(view, 700, "lens-700")``: a picture at that width, and what overflows or is cut off there."""

    def squeeze(view: Any, width: int, name: str) -> list[str]:
        view.page.set_viewport_size({"width": width, "height": 900})
        view.page.wait_for_timeout(50)
        shoot(name)
        return view.page.evaluate(looks.OVERFLOWING) + view.page.evaluate(looks.CLIPPED)

    return squeeze


@pytest.fixture
def still_page(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``still_page(view.html(), "dark", "lens-static-dark")``: what stays of a view, in a page without scripts."""
    contexts = []

    def open_still(html: str, theme: str, name: str) -> Any:
        size = {"width": 944, "height": 600}
        contexts.append(chromium.new_context(java_script_enabled=False, color_scheme=theme, viewport=size))
        page = contexts[-1].new_page()
        page.set_content(f"<body style='background:{'#fff' if theme == 'light' else '#111'}'>{html}")
        page.screenshot(path=Path(os.environ.get("MLX_NB_SCREENSHOTS") or tmp_path) / f"{name}.png")
        assert "<script" not in html
        return page

    yield open_still
    for context in contexts:
        context.close()


def theme_css(theme: str) -> str:
    """JupyterLab's own variables of its light or dark theme."""
    themes = Path(sys.prefix) / "share/jupyter/lab/themes/@jupyterlab"
    css = (themes / f"theme-{theme}-extension" / "index.css").read_text(encoding="utf-8")
    found = re.findall(r"(--jp-[\w-]+)\s*:\s*([^;{}]+);", css)
    return ":root{" + "".join(f"{name}:{value};" for name, value in found if "url(" not in value) + "}"


@pytest.fixture
def jupyterlab(page: Any) -> Callable[[str], None]:
    """``jupyterlab("dark")`` dresses the page as JupyterLab does: variables and an attribute of the body."""

    def dress(theme: str) -> None:
        page.evaluate(
            """([css, light]) => {
              document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
              document.body.dataset.jpThemeLight = light;
            }""",
            [theme_css(theme), "true" if theme == "light" else "false"],
        )

    return dress
