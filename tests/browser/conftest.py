"""Chromium, a page that must stay silent, and one widget in it."""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


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


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; a missing one skips, unless everything is required."""
    problem = None if CHROMIUM else "Chromium is missing. Type: apt-get install -y chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        problem = "Playwright is missing. Type: pip install 'mlx-nb[test]'"
    if problem:
        if os.environ.get("MLX_NB_REQUIRE") == "all":
            pytest.fail(problem)
        pytest.skip(problem)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that fails its test if anything is logged as a problem or fetched from anywhere."""
    context = chromium.new_context(viewport={"width": 944, "height": 900})
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    own = ("http://one-view.test/", "blob:", "data:", "about:")
    page.on("request", lambda r: None if r.url.startswith(own) else problems.append(f"request to {r.url}"))
    page.problems = problems
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
