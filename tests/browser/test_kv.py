"""The KV cache's view in a browser."""

import numpy as np
import pytest

from mlx_nb.widgets.kv import KVView, norms_png
from mlx_nb.widgets.view import Answer

pytestmark = pytest.mark.browser


def row(rank: int, layers: str, layer: int, **more):
    plain = {
        "rank": rank, "layers": layers, "layer": layer, "class": "KVCache", "offset": "44", "room": "256", "size": "1.0/5.6 MiB",
        "detail": "", "capacity": 256, "filled": 44, "kept": 0, "stale": 8, "ring_at": -1, "opens": True,
    }  # fmt: skip
    return {**plain, **more}


def make() -> KVView:
    ring = {
        "class": "RotatingKVCache",
        "room": "ring of 64",
        "capacity": 64,
        "filled": 64,
        "kept": 4,
        "stale": 0,
    }
    norms = np.random.default_rng(0).uniform(4, 9, (3, 64)).astype("<f4")
    positions = [*range(4), *range(70, 96), *range(36, 70)]
    state = {
        "model": "smollm2",
        "note": "last run · 44 tokens = 37 prompt + 7 of 8 generated (the last is sampled, not fed) · 2.0 MiB used of 11 MiB",
        "headline": "OFFSETS DIFFER: rank 1 is 1 behind rank 0",
        "rows": [row(0, "0–14", 0), row(1, "15–29", 15, offset="96", ring_at=30, detail="next slot 30 · keeps 4", **ring)],
        "chosen": {
            "layer": 15, "buffer": "keys", "heads": 3, "positions": positions, "names": ["keys", "values"], "ring": True,
        },
        "trim": {"most": 43, "why": ""},
        "sentence": "How long the keys of layer 15 are, head by head and position by position.",
    }  # fmt: skip
    return KVView(state, norms=norms.tobytes())


@pytest.mark.parametrize(("theme", "width"), [("light", 944), ("dark", 700), ("light", 700)])
def test_it_is_legible_and_overflows_nothing(open_widget, looks, jupyterlab, shoot, theme, width):
    view = open_widget(make())
    jupyterlab(theme)
    view.page.set_viewport_size({"width": width, "height": 700})
    view.page.wait_for_timeout(80)
    shoot(f"kv-{theme}-{width}")

    assert [text for ratio, text in view.page.evaluate(looks.CONTRASTS) if ratio < 4.5] == []
    assert [one for one in view.page.evaluate(looks.OVERFLOWING) if "mk-scroll" not in one] == []


def test_keys_rows_and_bars_speak(open_widget):
    view = open_widget(make())
    asked = []
    view.widget.on_ask(lambda what, details: asked.append((what, details)))
    assert "the ring writes slot 30 next" in view.page.locator(".mk-bar").nth(1).get_attribute("aria-label")
    view.page.locator(".mk-canvas").focus()
    for _ in range(4):
        view.page.keyboard.press("ArrowRight")
    readout = view.page.locator(".mk-readout")
    assert "position 36 (slot 30)" in readout.inner_text()
    view.page.keyboard.press("o")
    assert "position 70 (slot 4)" in readout.inner_text()
    view.button("0–14").click()
    view.page.get_by_label("Tokens to cut off").fill("3")
    view.button("Trim").click()
    view.button("Rewind").click(force=True)  # nothing is stepped: it does nothing
    view.settle()
    assert [one for one in asked if one[0] != "cost"] == [
        ("choose", {"layer": 0, "buffer": "keys"}),
        ("trim", {"count": 3}),
    ]
    view.page.evaluate("cleanup()")
    assert view.page.evaluate("window.listeners()") == 0


def test_going_back_says_what_it_costs_before_and_a_run_can_pause(open_widget):
    view = open_widget(make())
    asked = []

    def answer(what, details):
        asked.append((what, details))
        if what == "cost":
            back = f"Rewind: to the start of pass {9 - details['count']}; nothing is computed again."
            return Answer(
                {"trim": "Trim: 43 → 42 tokens.", "rewind": back, "fork": "Fork: 1 pass run again."}
            )
        return None

    view.widget.on_ask(answer)
    state = {
        **view.widget.state,
        "rewind": {"can": True, "why": ""},
        "run": {"status": "stopped", "pause": False, "resume": False},
    }
    view.widget.show({**state, "sequence": 0})
    view.settle()
    cost = view.page.locator(".mk-cost")
    assert "to the start of pass 8" in cost.inner_text()
    view.page.get_by_label("Tokens to cut off").fill("3")
    view.settle()
    view.wait_for(lambda: "to the start of pass 6" in cost.inner_text())
    view.root.focus()
    view.page.keyboard.press("w")
    view.page.keyboard.press("f")
    view.settle()
    assert [one for one in asked if one[0] != "cost"] == [("rewind", {"count": 3}), ("fork", {})]
    view.widget.show({**state, "sequence": 0, "run": {"status": "running", "pause": True, "resume": False}})
    view.flush()
    view.button("Pause").click()
    view.settle()
    assert asked[-1] == ("pause", {})
    assert cost.inner_text() == ""


def test_what_stays_has_the_norms_too(still_page):
    page = still_page(make().html(), "light", "kv-static")
    picture = page.locator("img.mk-canvas")

    assert picture.evaluate("node => [node.naturalWidth, node.naturalHeight]") == [11 * 64, 16 * 3]
    assert "positions 0 to 95" in picture.get_attribute("alt")
    assert "layer 15 keys" in page.locator(".mk-norms").inner_text()
    assert "img" not in KVView({**make().state, "sequence": 0}).html()  # the control: no norms, no picture


def test_the_longest_is_the_strongest_and_what_is_not_finite_is_yellow(page):
    values = np.array([[1, 2], [4, np.nan]], np.float32)
    alphas = page.evaluate(
        """async (bytes) => {
          const image = await createImageBitmap(new Blob([new Uint8Array(bytes)], { type: "image/png" }));
          const pen = new OffscreenCanvas(image.width, image.height).getContext("2d", { willReadFrequently: true });
          pen.drawImage(image, 0, 0);
          const at = (x, y) => [...pen.getImageData(x, y, 1, 1).data];
          return [[5, 5], [500, 5], [5, 20], [500, 20]].map((place) => at(...place));
        }""",
        list(norms_png(values, 1, 4)),
    )
    strengths = [alpha for _, _, _, alpha in alphas[:3]]
    assert 0 < strengths[0] < strengths[1] < strengths[2] == 254
    assert alphas[3][:3] == [255, 225, 77]
