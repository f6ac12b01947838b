"""The whole thing as a user meets it: a real JupyterLab, a real two-rank cluster, a real Chromium.

Set MLX_NB_SCREENSHOTS to a folder to keep the pictures.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.jupyter_lab import Lab, open_notebook, page_of, run_cell, serving

pytestmark = [pytest.mark.browser, pytest.mark.cluster, pytest.mark.timeout(600)]

CELLS = (
    "%load_ext mlx_nb",
    "%mlx_cluster start --ranks 2",
    "%mlx_load smollm2",
    "%%mlx_step --max-tokens 2\nWhat is the capital of France?",
    "%mlx_generate --max-tokens 12 What is the capital of France?",
    "%mlx_freeze",
    "%mlx_cluster stop",
)
STEP, GENERATE = 3, 4
VIEW = ".mlxnb-stepper"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with serving(tmp_path_factory) as found:
        yield found


@pytest.fixture
def lab_page(chromium: Any, lab: Lab) -> Iterator[Any]:
    with page_of(chromium, lab) as page:
        yield page


def keep(page: Any, name: str) -> None:
    if folder := os.environ.get("MLX_NB_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.locator(VIEW).first.screenshot(path=str(Path(folder) / f"{name}.png"))


def set_theme(page: Any, name: str) -> None:
    page.evaluate("t => window.jupyterapp.commands.execute('apputils:change-theme', { theme: t })", name)
    light = "true" if "Light" in name else "false"
    page.wait_for_function("l => document.body.dataset.jpThemeLight === l", arg=light)
    # JupyterLab covers the page while it changes, and a picture taken then shows its splash.
    page.wait_for_function("() => !document.querySelector('#jupyterlab-splash')")


def press(page: Any, button: str, until: str) -> None:
    """Press a stride's button and wait until the view says something."""
    page.locator(VIEW).get_by_role("button", name=button).first.click()
    page.wait_for_function(
        "([view, text]) => document.querySelector(view).innerText.includes(text)", arg=[VIEW, until]
    )


def test_a_user_steps_a_token_with_the_buttons_until_it_is_done(lab: Lab, lab_page: Any) -> None:
    page = lab_page
    open_notebook(page, lab, "steps.ipynb", CELLS)
    said = [run_cell(page, index) for index in range(STEP)]
    assert "2 ranks" in said[1], said
    assert "layers 15–29, norm, head" in said[2], said
    run_cell(page, STEP)
    view = page.locator(VIEW)
    view.wait_for()
    assert "embed_tokens" in view.inner_text()
    keep(page, "stepper-start")

    press(page, "Into", "has left embed_tokens")
    press(page, "Layer", "has left layer 0")
    press(page, "Into", "about to enter layer 1")
    press(page, "Over", "has left layer 1")
    press(page, "Rank", "has received the hidden state from rank 0")
    assert "37 pending" in view.inner_text()
    assert "83 KiB" in view.inner_text()
    view.get_by_role("button", name="Into").click()
    page.wait_for_function("v => document.querySelector(v).innerText.includes('enter layer 15')", arg=VIEW)
    for _ in range(12):  # into attention, up to the first rotation
        before = view.locator("[aria-live]").first.inner_text()
        view.get_by_role("button", name="Into").click()
        page.wait_for_function(
            "([v, b]) => document.querySelector(v).querySelector('[aria-live]').innerText !== b",
            arg=[VIEW, before],
        )
        if "rotate the queries" in view.inner_text():
            break
    assert "rotate the queries of layer 15" in view.inner_text()
    for theme in ("Light", "Dark"):
        set_theme(page, f"JupyterLab {theme}")
        keep(page, f"stepper-{theme.lower()}")
    set_theme(page, "JupyterLab Light")

    # A generate in between does not disturb what stands still.
    assert "Paris" in run_cell(page, GENERATE)
    assert "rotate the queries of layer 15" in view.inner_text()

    press(page, "Token", "decode 37:38")
    view.focus()
    page.keyboard.press("c")  # run to the end, by key
    page.wait_for_function("v => document.querySelector(v).innerText.includes('The run has ended')", arg=VIEW)
    keep(page, "stepper-end")
    assert "2 tokens" in view.inner_text()

    frozen = run_cell(page, 5)
    assert "1 view is a picture now." in frozen
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    assert "has stopped" in run_cell(page, 6)
    assert page.strangers == []


def test_a_saved_notebook_without_a_kernel_still_shows_the_picture(lab: Lab, lab_page: Any) -> None:
    """Needs what the test above has saved."""
    saved = lab.folder / "steps.ipynb"
    for _ in range(100):
        if "The run has ended" in saved.read_text():
            break
        time.sleep(0.1)
    shutil.copy(saved, lab.folder / "saved.ipynb")
    page = lab_page

    page.goto(lab.notebook("saved.ipynb"))
    page.wait_for_function(
        "() => window.jupyterapp && document.querySelectorAll('.jp-Notebook .jp-Cell').length > 3"
    )

    page.get_by_text("The run has ended").first.wait_for()
    assert "model not found" not in page.locator(".jp-Notebook").inner_text().lower()
    keep(page, "stepper-saved")


def test_interrupt_kernel_stops_a_run_that_a_button_began(lab: Lab, lab_page: Any) -> None:
    page = lab_page
    step = "%%mlx_step --max-tokens 2000 --raw\nOnce upon a time there was a little robot, and"
    open_notebook(page, lab, "interrupted.ipynb", (*CELLS[:STEP], step, "%mlx_freeze", "%mlx_cluster stop"))
    for index in range(STEP + 1):
        run_cell(page, index)
    press(page, "Run", "tokens so far")
    keep(page, "stepper-running")
    assert page.locator(VIEW).locator(".ms-lane .ms-status > span").all_inner_texts() == [
        "running",
        "running",
    ]

    page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    page.wait_for_function(
        "v => document.querySelector(v).innerText.includes('interrupted after')", arg=VIEW, timeout=10_000
    )
    keep(page, "stepper-interrupted")
    assert page.locator(VIEW).locator(".mv-pill").inner_text() == "stopped"

    press(page, "Into", "about to")  # and it can go on
    run_cell(page, STEP + 1)
    assert "has stopped" in run_cell(page, STEP + 2)
