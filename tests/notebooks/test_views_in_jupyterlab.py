"""The views as a user meets them: a real JupyterLab, a real two-rank cluster, and what is clicked there.

The tests share one notebook and go through it in their order. Set MLX_NB_SCREENSHOTS to a folder to keep pictures.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import cluster_processes, seconds_until_gone
from tests.jupyter_lab import (
    Lab,
    open_notebook,
    page_of,
    run_cell,
    serving,
    start_cell,
    until_ready,
    wait_for_cell,
)

pytestmark = [pytest.mark.browser, pytest.mark.cluster, pytest.mark.timeout(600)]

LONG = 1500
PROMPT = "--raw The capital of France is"
CELLS = (
    "%load_ext mlx_nb",
    "%mlx_cluster start --ranks 2",
    "%mlx_load smollm2",
    "%%mlx_step --max-tokens 2\nWhat is the capital of France?",
    "%mlx_show tensor",
    "%mlx_show kv",
    "cluster = mlx_nb.current.cluster\ncluster",
    f"%mlx_generate --raw --max-tokens {LONG} Once upon a time there was a little robot, and",
    f"%mlx_show stats {PROMPT}",
    f"%mlx_show lens {PROMPT}",
    f"%mlx_show attention --layer 16 {PROMPT}",
    "%mlx_show timeline",
    "pipe = mlx_nb.current.pipe\npipe.diff(pipe, 'The capital of France is', raw=True, sites='layers.*')",
    "%mlx_show plan",
    "%mlx_show shapes layers.3.mlp.output",
    f"%mlx_show tokens {PROMPT}",
    "%mlx_freeze",
    "%mlx_cluster stop",
)
VIEWS = ("stepper", "tensor", "kv", "cluster")
STEP, TENSOR, KV, CLUSTER, GENERATE, STATS, LENS, ATTENTION, TIMELINE, DIFF, PLAN, SHAPES, TOKENS, FREEZE, STOP = range(3, 18)


class Desk:
    """A notebook in a page.

    Attributes:
        page: Playwright's page.
        lab: Its server.
    """

    def __init__(self, page: Any, lab: Lab) -> None:
        self.page, self.lab = page, lab

    def open(self) -> "Desk":
        open_notebook(self.page, self.lab, "views.ipynb", ("import mlx_nb\n" + CELLS[0], *CELLS[1:]))
        for index in range(CLUSTER + 1):
            run_cell(self.page, index)
        self.view("cluster").wait_for()
        return self

    def view(self, name: str) -> Any:
        return self.page.locator(f".mlxnb-{name}")

    def press(self, view: str, button: str) -> None:
        self.view(view).get_by_role("button", name=button, exact=True).click()

    def until(self, view: str, text: str) -> None:
        self.page.wait_for_function(
            "([view, text]) => document.querySelector(view)?.innerText.includes(text)",
            arg=[f".mlxnb-{view}", text],
            timeout=30_000,
        )

    def status(self, view: str) -> str:
        return str(self.view(view).locator(".mv-header .mv-pill").inner_text())

    def until_status(self, view: str, status: str) -> None:
        self.page.wait_for_function(
            "([view, text]) => document.querySelector(view + ' .mv-header .mv-pill')?.innerText === text",
            arg=[f".mlxnb-{view}", status],
            timeout=30_000,
        )

    def keep(self, name: str) -> None:
        if folder := os.environ.get("MLX_NB_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def step_look_and_pause(desk: Desk) -> None:
    """What a user does with the views of one notebook."""
    # Step with the buttons; a view of the value and one of the KV caches go along.
    desk.press("stepper", "Layer")
    desk.until("stepper", "has left layer 0")
    desk.until("tensor", "layers.0")
    desk.press("stepper", "Layer")
    desk.until("tensor", "layers.1")

    # A breakpoint by a click at a layer: Run stops there. Another click takes it away.
    layer = desk.view("stepper").locator("[data-layer='5']")
    layer.click()
    desk.view("stepper").locator("[data-layer='5'][data-breakpoint]").wait_for()
    desk.press("stepper", "Run")
    desk.until("stepper", "Rank 0 is about to enter layer 5")
    layer.click()
    desk.until("stepper", "Breakpoints (0)")

    desk.press("stepper", "Rank")
    desk.until("stepper", "has received the hidden state from rank 0")
    desk.page.wait_for_function(
        "() => [...document.querySelectorAll('.mc-card .mv-pill')].map((p) => p.innerText).join() === 'waiting,stopped'",
        timeout=30_000,
    )

    # Zoom.
    out = desk.view("tensor").get_by_role("button", name="Zoom out", exact=True)
    assert out.get_attribute("aria-disabled") == "true"
    desk.press("tensor", "Zoom in")
    desk.page.wait_for_function(
        "() => document.querySelector('.mlxnb-tensor [aria-label=\"Zoom out\"]').getAttribute('aria-disabled') === 'false'"
    )

    # Go on until the token is done, and to the end.
    desk.press("stepper", "Token")
    desk.until("stepper", "decode 37:38")

    # From the view of the KV caches: a copy of the run, and back to where this pass began.
    desk.press("stepper", "Layer")
    desk.until("stepper", "has left layer 0")
    desk.until("kv", "the run that stands at decode 37:38")
    desk.until("kv", "run again up to here")  # what a fork costs, before it is made
    desk.press("kv", "Fork")
    desk.until("kv", "fork stands at decode 37:38")
    desk.press("kv", "Rewind")
    desk.until("kv", "The run stands at decode 37:38")
    desk.until("stepper", "about to look up the tokens' embeddings")
    desk.view("stepper").locator("button[aria-disabled='false']", has_text="Run").wait_for()
    desk.view("stepper").focus()
    desk.page.keyboard.press("c")
    desk.until("stepper", "The run has ended")

    # Cut tokens off the KV caches.
    desk.page.wait_for_function(
        "() => document.querySelector('.mlxnb-kv tbody').innerText.includes('38')", timeout=30_000
    )
    desk.view("kv").get_by_label("Tokens to cut off").fill("2")
    desk.until("kv", "38 → 36 tokens")
    desk.press("kv", "Trim")
    desk.until("kv", "2 tokens were cut off every layer")

    # A cell generates: Pause lets it stand still, Go on lets it go on, Interrupt ends it.
    cell = start_cell(desk.page, GENERATE)
    desk.until_status("cluster", "running")
    desk.page.wait_for_function(
        "() => /[0-9.]+ tok\\/s/.test(document.querySelector('.mc-speed').textContent)", timeout=30_000
    )
    desk.press("cluster", "Pause")
    desk.until_status("cluster", "paused")
    printed = cell.locator(".jp-OutputArea").inner_text()
    desk.keep("views-paused")
    desk.until_status("kv", "paused")  # the other view knows, and shows what the run holds
    desk.page.wait_for_timeout(700)
    assert cell.locator(".jp-OutputArea").inner_text() == printed
    desk.press("kv", "Go on")
    desk.until_status("cluster", "running")
    desk.page.wait_for_function(
        "([i, text]) => document.querySelectorAll('.jp-Notebook .jp-CodeCell')[i].querySelector('.jp-OutputArea')"
        ".innerText.length > text.length",
        arg=[GENERATE, printed],
        timeout=30_000,
    )
    desk.press("cluster", "Interrupt")
    said = wait_for_cell(desk.page, GENERATE, cell)
    assert "interrupted" in said, said
    desk.until_status("cluster", "idle")


def look_at_a_prompt(desk: Desk) -> None:
    """The views of a prompt, and the place that they share."""
    page = desk.page
    for index in range(STATS, TOKENS + 1):
        run_cell(page, index)
    lens = desk.view("lens").locator(".ml-side .mv-title")
    stats = desk.view("stats").locator(".mq-readout")
    assert lens.inner_text().startswith("layer 29 rank 1 · token 4")

    # A click in one is where the other looks, and the other way round.
    canvas = desk.view("stats").locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.click(box["x"] + 104 + 2.5 * (box["width"] - 104) / 5, box["y"] + 20 + 9.5 * 14)
    desk.until("stats", "rank 0 · layers.9.output · token 2")
    desk.until("lens", "layer 9 rank 0 · token 2")
    desk.view("lens").get_by_role("row").nth(21).locator(".ml-cell").nth(3).click()
    desk.until("stats", "token 3")
    assert stats.inner_text().startswith("rank 1 · layers.")
    desk.view("stats").get_by_role("button", name="absmax").click()
    desk.until("stats", "absmax is largest")

    desk.view("attention").get_by_role("button", name="Head 3", exact=True).click()
    desk.until("attention", "Head 3 of layer 16")
    desk.view("attention").get_by_role("button", name="Next layer").click()
    desk.until("attention", "of layer 17")

    desk.view("timeline").locator("canvas").focus()
    page.keyboard.press("ArrowUp")
    desk.until("timeline", "rank 0 · prefill 0:")
    page.keyboard.press("ArrowDown")
    desk.until("timeline", "rank 1 · prefill 0:")

    assert desk.status("diff") == "the same"
    desk.view("diff").get_by_role("button", name="Modules of layer 3", exact=True).click()
    desk.until("diff", "layers.3.mlp.down_proj.output")

    for name, says in (("plan", "cut evenly"), ("shapes", "model.layers.3.mlp"), ("tokens", "·capital")):
        assert says in desk.view(name).last.inner_text()
    desk.keep("views-of-a-prompt")


@pytest.fixture(scope="module")
def desk(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with serving(tmp_path_factory) as lab, page_of(chromium, lab) as page:
        yield Desk(page, lab).open()


def test_a_user_steps_zooms_trims_and_pauses(desk: Desk) -> None:
    step_look_and_pause(desk)
    assert desk.page.strangers == []


def test_the_views_of_a_prompt_look_at_one_place(desk: Desk) -> None:
    look_at_a_prompt(desk)
    assert desk.page.strangers == []


def test_a_page_that_is_loaded_again_has_its_views_again(desk: Desk) -> None:
    page = desk.page
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    until_ready(page, desk.lab)
    for name in VIEWS:
        desk.view(name).wait_for()
    desk.keep("views-reloaded")
    desk.press("stepper", "Restart")
    desk.until("stepper", "embed_tokens")
    desk.until_status("cluster", "stopped")
    assert "not found" not in page.locator(".jp-Notebook").inner_text()


def test_a_kernel_that_is_restarted_leaves_pictures_and_no_process(desk: Desk) -> None:
    page, broken = desk.page, []
    page.on("pageerror", lambda error: broken.append(str(error)))
    name = desk.view("cluster").locator(".mv-model").inner_text()
    assert cluster_processes(name)
    assert page.locator(".mv-gone").count() == 0  # the control: nothing says so while the kernel lives
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:restart-kernel')")
    page.locator(".jp-Dialog .jp-mod-accept").click()
    for view in VIEWS:
        desk.view(view).get_by_text("the view's kernel has ended").wait_for()
        assert desk.view(view).locator(".mv-buttons[inert]").count() == 1
    until_ready(page, desk.lab)
    desk.keep("views-restarted")
    desk.view("stepper").focus()
    page.keyboard.press("l")  # no key is sent to nobody
    text = page.locator(".jp-Notebook").inner_text()
    assert "Error displaying widget" not in text
    assert "not found" not in text
    seconds_until_gone(name, 15)
    assert broken == []


@pytest.mark.soak
def test_notebook_7_does_the_same(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory, "notebook") as lab, page_of(chromium, lab) as page:
        desk = Desk(page, lab).open()
        step_look_and_pause(desk)
        look_at_a_prompt(desk)
        assert "pictures now" in run_cell(page, FREEZE)
        assert "has stopped" in run_cell(page, STOP)
        assert page.strangers == []
