"""The statistics strip in Chromium: colours, keys, links, looks, and the picture that stays."""

import numpy as np
import pytest

from mlx_nb.shared.statistics import STATISTICS, TokenStatistics
from mlx_nb.widgets.stats import StatsView
from mlx_nb.widgets.stats_state import stats_state, unpack_numbers

pytestmark = pytest.mark.browser

WORDS = ["<|im_start|>", "user", "\n", "What", " is", " the", " capital", " of", " France", "?"]
PEAK, BROKEN = (5, 0), (9, 7)


def made(layers: int = 30, tokens: int = 37) -> TokenStatistics:
    """Norms that grow with depth, one massive token, one vector of NaN."""
    random = np.random.default_rng(5)
    rms = np.exp(np.linspace(0, 3, layers)[:, None] + random.normal(0, 0.3, (layers, tokens))).astype(
        np.float32
    )
    rms[PEAK] = 900
    nonfinite = np.zeros_like(rms)
    rms[BROKEN], nonfinite[BROKEN] = np.nan, 576
    return TokenStatistics(
        model="smollm2",
        rows=tuple(map(str, range(layers))),
        sites=tuple(f"layers.{layer}.output" for layer in range(layers)),
        ranks=tuple(0 if layer < layers // 2 else 1 for layer in range(layers)),
        layers=tuple(range(layers)),
        start=0,
        values={"rms": rms, "absmax": rms * 7, "std": rms * 0.9, "nonfinite": nonfinite},
    )


def widget(found: TokenStatistics) -> StatsView:
    texts = [WORDS[place % len(WORDS)] for place in range(found.shape[1])]
    state, numbers = stats_state(found, "layers.*.resid_post", "rms", texts)
    return StatsView(state, numbers=numbers)


def test_a_long_prompt_shares_columns_and_keeps_the_largest() -> None:
    found = made(12, 3000)
    state, packed = stats_state(found)
    numbers = unpack_numbers(state, packed)

    assert state["each"] == 7
    assert numbers.shape == (len(STATISTICS), 12, 429)
    np.testing.assert_array_equal(numbers[0, 2, 100], found["rms"][2, 700:707].max())
    np.testing.assert_array_equal(numbers[0, 2, -1], found["rms"][2, 428 * 7 :].max())
    assert np.argwhere(np.isnan(numbers[0])).tolist() == [[9, 1]]  # one NaN among seven tokens is seen
    assert len(packed) < 128 * 1024


@pytest.mark.parametrize("size", [(30, 37), (80, 3000), (12, 9)])
def test_every_text_has_contrast_in_both_themes(open_widget, dressed, size):
    view = open_widget(widget(made(*size)))
    for theme in ("light", "dark"):
        measured = dressed(view, theme, f"stats-{size[0]}-{theme}")

        assert len(measured) > 8
        assert [text for ratio, text in measured if ratio < 4.5] == [], theme


@pytest.mark.parametrize("width", [700, 480])
def test_nothing_overflows_a_narrow_place(open_widget, squeezed, width):
    assert squeezed(open_widget(widget(made())), width, f"stats-{width}") == []


def test_what_a_screen_reader_hears(open_widget):
    from playwright.sync_api import expect

    view = open_widget(widget(made()))

    expect(view.page.locator("body")).to_match_aria_snapshot(
        """
        - 'group "Statistics: smollm2"':
          - toolbar "Statistics":
            - group "Statistic":
              - button "rms" [pressed]
              - button "absmax"
              - button "std"
              - button "NaN, Inf"
          - img /30 rows by 37 tokens. rms is largest, 900, at token 0 of layers.5.output. 1 of 1110 vectors have NaN/
          - status: /rms is largest, 900/
        """
    )


ALPHA = """([row, column, rows, columns]) => {
  const canvas = document.querySelector("canvas"), ratio = devicePixelRatio;
  const tall = (canvas.clientHeight - 22) / rows, wide = (canvas.clientWidth - 104) / columns;
  const copy = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  copy.drawImage(canvas, -Math.round((104 + (column + 0.4) * wide) * ratio), -Math.round((20 + (row + 0.5) * tall) * ratio));
  return [...copy.getImageData(0, 0, 1, 1).data];
}"""


def test_a_larger_value_is_darker_and_what_is_broken_is_marked(open_widget):
    found = made()
    view = open_widget(widget(found))
    view.page.wait_for_timeout(100)

    def cell(row: int, column: int) -> list[int]:
        return view.page.evaluate(ALPHA, [row, column, *found.shape])

    low, high = np.unravel_index(np.nanargmin(found["rms"]), found.shape), PEAK
    assert cell(*high)[3] > 250
    assert cell(*map(int, low))[3] < 30
    red, green, blue, alpha = cell(*BROKEN)  # yellow, or a black line on it
    assert alpha == 255
    assert red >= green >= 2 * blue
    alphas = [cell(row, 20)[3] for row in (0, 10, 20, 29)]
    assert alphas == sorted(alphas)


def test_keys_and_clicks_choose_a_place_for_all_views(open_widget):
    view = open_widget(widget(made()))
    readout = view.page.locator(".mq-readout")
    view.page.locator("canvas").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "PageDown"):
        view.page.keyboard.press(key)
    view.settle()
    assert readout.inner_text().startswith("rank 1 · layers.29.output · token 1 user · rms ")
    assert view.sent[-1] == {
        "kind": "place",
        "place": {"rank": 1, "site": "layers.29.output", "token": 1, "layer": 29},
    }

    view.button("absmax").click()
    assert "absmax" in readout.inner_text()
    assert "absmax is largest, 6300" in view.page.locator(".mv-sentence").inner_text()
    box = view.page.locator("canvas").bounding_box()
    view.page.mouse.click(box["x"] + 106, box["y"] + 20 + 5.5 * 14)
    view.settle()
    assert view.sent[-1]["place"] == {"rank": 0, "site": "layers.5.output", "token": 0, "layer": 5}
    assert "absmax 6300" in readout.inner_text()
    sent = len(view.sent)

    view.widget.place = {"layer": 12, "token": 30, "head": 3}
    view.settle()
    assert readout.inner_text().startswith("rank 0 · layers.12.output · token 30 ")
    assert len(view.sent) == sent  # no echo


def test_nothing_is_left_when_the_view_ends(open_widget):
    view = open_widget(widget(made()))
    assert view.page.evaluate("listeners()") > 0
    view.page.evaluate("cleanup()")
    assert view.page.evaluate("listeners()") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_that_stays_says_the_same_without_a_script(still_page, theme):
    page = still_page(widget(made()).html(), theme, f"stats-static-{theme}")

    assert "rms is largest, 900, at token 0 of layers.5.output" in page.locator(".mv-sentence").inner_text()
    assert [each.get_attribute("alt") for each in page.locator("img").all()] == [
        "rank 0: rms by row and token",
        "rank 1: rms by row and token",
    ]
    assert page.locator("img").first.evaluate("node => node.naturalHeight") == 150
