"""The logit lens's view in Chromium: cells, keys, links, looks, and the picture that stays."""

import numpy as np
import pytest

from mlx_nb.shared.lens import Lens
from mlx_nb.shared.readout import Readout
from mlx_nb.widgets.lens import LensView
from mlx_nb.widgets.lens_state import lens_state, unpack_cells

pytestmark = pytest.mark.browser

WORDS = [
    " the",
    "\n",
    " Paris",
    ".",
    " capital",
    "Die",
    " ()",
    " France",
    " 巴黎",
    "<|im_start|>",
    " a-very-long-token",
]
LAYERS, TOP = 12, 5


def made(positions: int = 6, layers: int = LAYERS, broken: bool = False) -> Lens:
    """A lens whose answer at position p is word p, the most probable from layer 6 + p on."""
    random = np.random.default_rng(3)
    read = []
    for place in range(positions):
        count = layers + 1
        ids = np.stack([random.permutation(len(WORDS))[:TOP] for _ in range(count)])
        chances = -np.sort(-random.dirichlet(np.ones(TOP) * 0.6, count) * np.linspace(0.3, 1, count)[:, None])
        answer = place % len(WORDS)
        begins = min(6 + place, layers)
        for row in range(count):
            others = ids[row][ids[row] != answer]
            ids[row, 0] = answer if row >= begins else others[0]
        read.append(
            Readout(
                ids=ids,
                probabilities=chances.astype(np.float32),
                entropy_bits=np.linspace(9, 1, count).astype(np.float32),
                answer=-1 if broken else answer,
                answer_probabilities=np.linspace(0, 0.7, count).astype(np.float32),
                answer_places=np.where(np.arange(count) >= begins, 0, 40 - np.arange(count)),
            )
        )
    return Lens(
        model="smollm2",
        rows=("embed", *map(str, range(layers))),
        ranks=(0, *(0 if layer < layers // 2 else 1 for layer in range(layers))),
        positions=tuple(range(31, 31 + positions)),
        read=tuple(read),
        fed=tuple(place % len(WORDS) for place in range(positions)),
        texts=dict(enumerate(WORDS)),
        head_rank=1,
    )


def widget(lens: Lens) -> LensView:
    state, cells = lens_state(lens)
    return LensView(state, cells=cells)


def test_what_is_packed_is_what_the_lens_has() -> None:
    lens = made()
    state, packed = lens_state(lens)
    cells = unpack_cells(state, packed)

    texts = np.array(state["texts"])[cells["tokens"]]
    expected = [
        [[WORDS[i].replace(" ", "·").replace("\n", "↵") for i in top] for top in row] for row in lens.ids
    ]
    assert texts.tolist() == expected
    np.testing.assert_array_equal(cells["probabilities"], lens.probabilities)
    assert [column["appears"] for column in state["columns"]] == [6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("size", [(6, 12), (12, 30), (64, 30)])
def test_every_text_has_contrast_in_both_themes(looks, open_widget, dressed, size):
    view = open_widget(widget(made(*size)))
    for theme in ("light", "dark"):
        dressed(view, theme, f"lens-{size[0]}-{theme}")
        for mode in ("Answer", "Certainty", "Probability"):
            view.button(mode).click()
            measured = view.page.evaluate(looks.CONTRASTS)

            assert len(measured) > 60
            assert [text for ratio, text in measured if ratio < 4.5] == [], (theme, mode)


@pytest.mark.parametrize("width", [700, 480])
def test_nothing_overflows_a_narrow_place(open_widget, squeezed, width):
    assert squeezed(open_widget(widget(made(12, 30))), width, f"lens-{width}") == []


def test_what_a_screen_reader_hears(open_widget):
    from playwright.sync_api import expect

    view = open_widget(widget(made(2, 3)))

    expect(view.page.locator("body")).to_match_aria_snapshot(
        """
        - 'group "Logit lens: smollm2"':
          - toolbar "Logit lens":
            - group "Colour shows":
              - button "Probability" [pressed]
              - button "Answer"
              - button "Certainty"
          - grid "Most probable token after each layer, at each position":
            - rowgroup:
              - row "after layer ·the ↵"
            - rowgroup:
              - row /rank 0 embed/
              - row /0/
              - row /rank 1 1/
              - row /2/:
                - gridcell
                - gridcell [selected]
          - table "Most probable tokens"
          - status: /After token 32/
        """
    )


def test_keys_and_clicks_go_from_cell_to_cell_and_link(open_widget):
    lens = made()
    view = open_widget(widget(lens))
    title, facts = view.page.locator(".ml-side .mv-title"), view.page.locator(".ml-side .mv-note")
    assert title.inner_text() == "layer 11 rank 1 · token 36 Die"
    assert "the answer Die is number 1 here, 70 %" in facts.inner_text()

    view.page.locator(".ml-cell.current").focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
        view.page.keyboard.press(key)
    assert title.inner_text() == "layer 9 rank 1 · token 35 ·capital"
    assert view.page.evaluate("document.activeElement.className").startswith("ml-cell")
    rows = view.page.locator(".ml-top tr")
    assert rows.count() == TOP
    assert rows.first.locator("th").inner_text() == lens.top(9, 35)[0][0].replace(" ", "·")
    view.page.locator(".ml-grid tbody tr").nth(0).locator("td").nth(2).click()
    view.settle()
    assert view.sent[-1] == {"kind": "place", "place": {"rank": 0, "token": 33}}
    sent = len(view.sent)

    view.widget.place = {"layer": 4, "token": 32, "site": "layers.4.output"}
    view.settle()
    assert title.inner_text() == "layer 4 rank 0 · token 32 ↵"
    view.widget.place = {"layer": 2, "token": 999}
    view.settle()
    assert title.inner_text() == "layer 2 rank 0 · token 32 ↵"
    assert len(view.sent) == sent  # no echo


def test_the_answer_is_framed_from_where_it_appears(open_widget):
    view = open_widget(widget(made()))
    framed = view.page.evaluate(
        """() => [...document.querySelectorAll(".ml-grid tbody tr")].map((row) =>
          [...row.querySelectorAll("td")].map((cell) => cell.classList.contains("answer")))"""
    )
    assert framed == [[row >= 6 + place for place in range(6)] for row in range(LAYERS + 1)]
    shades = (
        "[...document.querySelectorAll('.ml-cell')].map((node) => node.className.match(/p(\\d)/)[1]).join('')"
    )
    by_probability = view.page.evaluate(shades)
    view.button("Answer").click()
    by_answer = view.page.evaluate(shades)
    assert by_answer != by_probability
    assert by_answer[-6:] == "666666"  # 70 %
    assert by_answer[:6] == "000000"


def test_logits_that_are_not_finite_are_drawn_without_an_answer(open_widget):
    view = open_widget(widget(made(broken=True)))
    assert view.page.locator(".ml-cell.answer").count() == 0
    assert "not finite" in view.page.locator(".mv-sentence").inner_text()


def test_bytes_stay_in_the_budget_and_nothing_is_left_behind(open_widget):
    view = open_widget(widget(made(200, 30)))
    assert view.widget.comm.size_bytes < 256 * 1024
    assert view.page.locator(".ml-grid thead th").count() == 65
    assert "the last 64 of 200" in view.page.locator(".mv-prompt").inner_text()
    view.page.evaluate("cleanup()")
    assert view.page.evaluate("listeners()") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_that_stays_says_the_same_without_a_script(open_widget, still_page, theme):
    lens = made(8, 12)
    view = open_widget(widget(lens))
    words = "[...document.querySelectorAll('.ml-grid th, .ml-grid td')].map((n) => n.textContent)"
    live = view.page.evaluate(words)
    page = still_page(view.widget.html(), theme, f"lens-static-{theme}")

    still = [each.text_content() for each in page.locator(".ml-grid th, .ml-grid td").all()]
    assert still == live
    assert page.locator(".ml-cell.answer").count() == view.page.locator(".ml-cell.answer").count()
    assert "After token" in page.locator(".mv-sentence").inner_text()
