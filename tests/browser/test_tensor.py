"""The tensor's view in a browser: what is seen at once, what comes after, keys, axes, looks."""

import base64

import numpy as np
import pytest

from tests.browser import tensors

pytestmark = pytest.mark.browser


@pytest.fixture
def look_at(open_widget):
    """``look_at(array, letters)``: the live view in the page, with its numbers."""
    opened = []

    def open_one(array, letters, **said):
        found = tensors.live(array, letters, **said)
        opened.append(found)
        view = open_widget(found.view)
        view.wait_for(lambda: found.view.state["numbers"] or not array.size, timeout_s=20)
        view.settle()
        quiet(view)
        return view

    yield open_one
    for one in opened:
        one.live.freeze()


def quiet(view):
    """Until nothing is asked any more."""
    view.page.wait_for_timeout(120)
    view.wait_for(lambda: view.root.get_attribute("aria-busy") != "true")
    view.settle()


SHAPES = {
    "hidden": (tensors.hidden, ("B", "L", "D")),
    "heads": (tensors.heads, ("B", "H", "L", "")),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_text_has_contrast_in_both_themes_and_nothing_overflows_a_narrow_place(
    looks, look_at, jupyterlab, shoot, name
):
    make, letters = SHAPES[name]
    view = look_at(make(), letters)
    for theme in ("light", "dark"):
        jupyterlab(theme)
        quiet(view)
        shoot(f"tensor-{name}-{theme}")

        measured = view.page.evaluate(looks.CONTRASTS)

        assert len(measured) > 30
        assert [text for ratio, text in measured if ratio < 4.5] == [], theme

    for width in (700, 480):
        view.page.set_viewport_size({"width": width, "height": 900})
        quiet(view)
        shoot(f"tensor-{name}-{width}")

        assert view.page.evaluate(looks.OVERFLOWING) == [], width
        assert [text for text in view.page.evaluate(looks.CLIPPED) if "mt-help" not in text] == [], width


def pixels(view) -> np.ndarray:
    found = view.page.evaluate(
        """() => {
          const canvas = document.querySelector(".mt-canvas");
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
          copy.drawImage(canvas, 0, 0);
          const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
          let text = "";
          for (let i = 0; i < data.length; i += 32768) text += String.fromCharCode(...data.subarray(i, i + 32768));
          return [canvas.height, canvas.width, btoa(text)];
        }"""
    )
    return np.frombuffer(base64.b64decode(found[2]), np.uint8).reshape(found[0], found[1], 4)


def test_64_mib_open_in_three_quarters_of_one_and_the_outlier_is_seen_and_found(open_widget, shoot):
    array = tensors.large()
    live = tensors.live(array, ("L", "D"), dtype="bfloat16")
    view = open_widget(live.view)
    view.page.get_by_label("Colour range").select_option("all")
    view.page.wait_for_timeout(30)
    drawn = pixels(view)
    orange = np.argwhere((drawn[..., 0] == 217) & (drawn[..., 3] > 200))
    assert len(orange)  # in the very first picture
    middle = np.array(drawn.shape[:2]) / 2
    assert (np.abs(orange - middle) < 4).all()

    view.wait_for(lambda: live.view.state["numbers"], timeout_s=30)
    quiet(view)
    assert live.view.comm.size_bytes <= 0.75 * 2**20
    assert view.root.locator(".mt-readout").inner_text().startswith("tokens 0–")

    before = live.view.comm.size_bytes
    view.page.get_by_role("button", name="[2047,4095]").click()
    quiet(view)
    shoot("tensor-large-outlier")
    assert "token 2,047" in view.root.locator(".mt-readout").inner_text()
    assert view.root.locator(".mt-readout").inner_text().endswith("hidden channel 4,095: 1204")
    place = {"rank": 1, "site": "model.layers.15.output", "layer": 15, "token": 2047}
    assert {"kind": "place", "place": place} in view.sent
    assert live.view.comm.size_bytes - before <= 0.5 * 2**20
    live.live.freeze()


def test_keys_move_zoom_and_read_values_aloud(look_at):
    array = tensors.hidden()
    view = look_at(array, ("B", "L", "D"))
    canvas = view.page.locator(".mt-canvas")
    readout = view.page.locator(".mt-readout")
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        view.page.keyboard.press(key)
    quiet(view)
    assert readout.inner_text().startswith("token 1 user · hidden channel 2: ")
    assert readout.inner_text().endswith(f"{array[0, 1, 2]:.4g}".replace("-", "−"))

    view.page.keyboard.press("End")
    quiet(view)
    assert "hidden channel 575" in readout.inner_text()
    view.page.keyboard.press("1")
    quiet(view)
    assert "shown are rows 0–" in canvas.get_attribute("aria-label")
    assert "columns 5" in canvas.get_attribute("aria-label")
    view.page.keyboard.press("0")
    quiet(view)
    assert "shown" not in canvas.get_attribute("aria-label")
    view.page.keyboard.press("+")
    quiet(view)
    assert "shown" in canvas.get_attribute("aria-label")
    view.page.keyboard.press("Enter")
    view.settle()
    assert [one["place"]["token"] for one in view.sent if one["kind"] == "place"] == [1]


def test_dragging_pans_and_the_wheel_zooms_only_with_ctrl(look_at):
    view = look_at(tensors.hidden(), ("B", "L", "D"))
    canvas = view.page.locator(".mt-canvas")
    box = canvas.bounding_box()
    view.page.mouse.move(box["x"] + 400, box["y"] + 150)
    view.page.mouse.wheel(0, -300)
    quiet(view)
    assert "shown" not in canvas.get_attribute("aria-label")
    view.page.keyboard.down("Control")
    view.page.mouse.wheel(0, -300)
    view.page.keyboard.up("Control")
    quiet(view)
    before = canvas.get_attribute("aria-label")
    assert "shown" in before
    view.page.mouse.down()
    view.page.mouse.move(box["x"] + 300, box["y"] + 150, steps=4)
    view.page.mouse.up()
    quiet(view)
    assert canvas.get_attribute("aria-label") != before
    assert not [one for one in view.sent if one["kind"] == "place"]  # a drag picks nothing


def test_other_heads_other_axes_and_back(look_at):
    array = tensors.heads()
    view = look_at(array, ("B", "H", "L", ""))
    readout = view.page.locator(".mt-readout")

    def value() -> str:
        quiet(view)
        view.page.locator(".mt-canvas").focus()
        for key in ("Home", "PageUp", "PageUp", "ArrowDown", "ArrowRight"):
            view.page.keyboard.press(key)
        quiet(view)
        return readout.inner_text().rpartition(": ")[2]

    def said(number) -> str:
        return f"{number:.4g}".replace("-", "−")

    assert value() == said(array[0, 0, 1, 1])
    view.button("Next H · query head").click()
    view.wait_for(lambda: view.widget.state["index"][1] == 1)
    assert value() == said(array[0, 1, 1, 1])
    view.page.get_by_label("columns", exact=True).select_option("1")
    view.wait_for(lambda: view.widget.state["columns"] == 1)
    assert value() == said(array[0, 1, 1, 0])
    view.button("Swap").click()
    view.wait_for(lambda: view.widget.state["rows"] == 1)
    assert value() == said(array[0, 1, 1, 0])


def test_nan_and_infinities_are_hatched_named_and_listed(look_at):
    view = look_at(tensors.heads(), ("B", "H", "L", ""))

    assert view.page.locator(".mv-legend").first.inner_text().split()[-3:] == ["−Inf", "+Inf", "NaN"]
    assert [cell.inner_text() for cell in view.page.locator(".mv-numbers .alarm").all()] == ["4", "2"]
    assert (np.all(pixels(view) == (255, 225, 77, 255), axis=-1)).sum() > 50
    assert view.page.locator(".mt-outliers td:first-child").first.inner_text() == "+Inf"


def test_colour_ranges_change_the_picture_but_ask_for_nothing(look_at):
    view = look_at(tensors.hidden(), ("B", "L", "D"))
    asked = len(view.sent)
    seen = []
    for name in ("part", "all", "log"):
        view.page.get_by_label("Colour range").select_option(name)
        view.page.wait_for_timeout(60)
        seen.append(pixels(view)[..., 3].mean())
    assert seen[1] < 5 < seen[0]  # with −812 as the limit all else is blank
    assert seen[2] > 60
    assert len(view.sent) == asked


def test_what_a_screen_reader_hears(look_at):
    from playwright.sync_api import expect

    view = look_at(tensors.hidden(), ("B", "L", "D"))

    expect(view.page.locator("body")).to_match_aria_snapshot(
        """
        - 'group "Tensor: layers.15.output"':
          - toolbar "Tensor":
            - button "Zoom out"
            - button "Zoom in"
            - button "All"
            - button "1:1"
            - button "Swap"
          - combobox "rows"
          - combobox "columns"
          - combobox "Colour range"
          - img "layers.15.output, 37 rows by 576 columns; blue is negative, orange positive"
          - img "Largest magnitude of each row"
          - img "Largest magnitude of each column"
          - status: "token 0 <|im_start|> · hidden channel 0: 0.3456"
          - table:
            - rowgroup:
              - row "min mean rms max zero NaN Inf"
            - rowgroup
          - figure "−1024 0 +1024":
            - 'img "Histogram: a bar for each power of two, heights as logarithms"'
          - table:
            - rowgroup:
              - row "largest at"
            - rowgroup:
              - row "−812 [0,0,138] <|im_start|>":
                - cell:
                  - button "[0,0,138] <|im_start|>"
          - status: "Recorded now: the last run's 44 tokens were fed again."
        """
    )


def test_the_picture_that_stays_has_the_same_numbers(look_at, shoot):
    view = look_at(tensors.hidden(), ("B", "L", "D"))
    words = "root => [...root.querySelectorAll('td')].map((node) => node.textContent)"
    live = view.root.evaluate(words)
    html = view.widget.html()
    view.page.evaluate("cleanup()")
    view.page.evaluate("html => { document.getElementById('root').innerHTML = html; }", html)
    shoot("tensor-static")

    assert view.root.evaluate(words) == live
    assert view.root.locator("img.mt-picture").bounding_box()["height"] == 300
    assert "<script" not in html
    assert len(html) < 96 * 1024
    assert "−812 at [0,0,138]" in view.widget.text()


def test_an_error_is_shown_and_the_picture_stays(look_at):
    view = look_at(tensors.heads(), ("B", "H", "L", ""))
    view.page.evaluate("model.send({kind: 'ask', what: 'face', id: 1, details: {rows: 'x'}})")
    view.wait_for(lambda: view.widget.state["error"])
    view.settle()

    assert "ValueError" in view.page.get_by_role("alert").inner_text()
    assert view.page.locator(".mt-canvas").is_visible()


def test_the_cleanup_removes_everything(look_at):
    view = look_at(tensors.hidden(), ("B", "L", "D"))
    assert view.page.evaluate("window.listeners()") == 6
    view.page.evaluate("cleanup()")
    view.page.wait_for_timeout(150)
    assert view.page.evaluate("window.listeners()") == 0
    assert view.root.count() == 0
