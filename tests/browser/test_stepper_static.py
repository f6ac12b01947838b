"""The picture that stays in a saved notebook says what the live view says."""

import pytest

from mlx_nb.widgets.stepper_static import stepper_html

NAMES = ["start", "mid_prefill", "decode", "finished", "failed", "four_ranks", "eighty_layers", "crowded"]

# Words and classes, the buttons of the live view left out; a folded chip is a button only there.
SEEN = """(root) => {
  const copy = root.cloneNode(true);
  copy.querySelectorAll(".mv-buttons, .ms-form, [hidden], style").forEach((node) => node.remove());
  copy.querySelectorAll("details").forEach((node) => node.querySelector("table") || node.remove());
  const classes = (selector) => [...copy.querySelectorAll(selector)].map((node) => node.className);
  const labels = [...copy.querySelectorAll(".ms-cells")].map((node) => node.getAttribute("aria-label"));
  // The empty parts of a live view are there, and have no size.
  const words = [...copy.querySelectorAll("*")].flatMap((node) => [...node.childNodes])
    .filter((node) => node.nodeType === 3).map((node) => node.data.trim()).filter(Boolean);
  return { words, labels, cells: classes(".ms-cell"), tokens: classes(".ms-token, .ms-more"), wires: classes(".ms-wire"),
           titles: [...copy.querySelectorAll(".ms-cell")].map((node) => node.title) };
}"""


@pytest.fixture
def static_page(chromium):
    """A page without scripts."""
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 944, "height": 900})
    yield context.new_page()
    context.close()


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_both_show_the_same_words_and_cells(open_view, states, name):
    state, preview = states.make(name)
    view = open_view(name)
    live = view.root.evaluate(SEEN)
    view.page.evaluate("cleanup()")
    view.page.evaluate(
        "html => { document.getElementById('root').innerHTML = html; }", stepper_html(state, preview)
    )
    static = view.root.evaluate(SEEN)

    assert static == live
    assert len(live["words"]) > 30


@pytest.mark.browser
@pytest.mark.parametrize("width", [944, 700])
@pytest.mark.parametrize("name", ["mid_prefill", "decode", "crowded"])
def test_the_picture_needs_no_script_and_overflows_nothing(static_page, states, tmp_path, name, width):
    static_page.set_viewport_size({"width": width, "height": 900})
    static_page.set_content(f"<!doctype html><body>{stepper_html(*states.make(name))}</body>")
    static_page.screenshot(path=tmp_path / f"static-{name}-{width}.png", full_page=True)

    box = static_page.locator(".mlxnb-stepper").bounding_box()
    image = static_page.locator("img.ms-canvas").bounding_box()

    assert box["x"] + box["width"] <= width
    assert image["width"] > 250
    for cell in static_page.locator(".ms-lane, .ms-pane, .ms-token").all():
        inside = cell.bounding_box()
        assert inside["x"] >= box["x"]
        assert inside["x"] + inside["width"] <= box["x"] + box["width"]


@pytest.mark.browser
def test_the_picture_follows_the_system_and_jupyterlabs_theme(open_view, states, jupyterlab):
    view = open_view("mid_prefill", render=False)
    html = stepper_html(*states.make("mid_prefill"))
    view.page.evaluate("html => { document.getElementById('root').innerHTML = html; }", html)
    colour = "() => getComputedStyle(document.querySelector('.ms-cell.done')).backgroundColor"
    assert view.page.evaluate(colour) == "rgb(47, 111, 219)"

    view.page.emulate_media(color_scheme="dark")
    assert view.page.evaluate(colour) == "rgb(110, 168, 254)"

    jupyterlab("light")
    assert view.page.evaluate(colour) == "rgb(47, 111, 219)"
