"""The attention view in Chromium: heads, keys, links, looks, and the picture that stays."""

from typing import Any

import numpy as np
import pytest

from mlx_nb.widgets.attention import AttentionView
from mlx_nb.widgets.attention_state import Heads, attention_state, unpack_values

pytestmark = pytest.mark.browser

WORDS = ["<|im_start|>", "user", "\n", "What", " is", " the", " capital", " of", " France", "?", "<|im_end|>"]


def made(tokens: int = 37, heads: int = 9, head: int = 2, ring: bool = False) -> Heads:
    """Heads that look at the first token, at themselves and at the token before, in other shares."""
    random = np.random.default_rng(7)
    head = min(head, heads - 1)
    scores = random.normal(0, 1, (heads, tokens, tokens))
    own = np.arange(tokens)
    for one in range(heads):
        scores[one, :, 0] += 4 if one % 3 == 0 else 1
        scores[one, own[1:], own[:-1]] += 5 if one % 3 == 2 else 0
    scores[:, own[:, None] < own[None]] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    small = weights[:, :32, :32] if tokens > 32 else weights
    return Heads(
        layer=12,
        rank=0,
        head=head,
        rows=(0, tokens),
        columns=(-1 if ring else 0, tokens),
        small=small,
        values=weights[head][:256, :256] if tokens <= 256 else weights[head][::4, ::4],
        error=3.1e-7,
    )


def widget(found: Heads) -> AttentionView:
    layers = [{"layer": n, "rank": n // 15, "why": "not observable: …" if n == 13 else ""} for n in range(30)]
    tokens = [WORDS[place % len(WORDS)] for place in range(found.columns[1])]
    state, small, values = attention_state(
        found,
        title="smollm2",
        note="9 heads · tokens 0–36 look at 37",
        layers=layers,
        tokens=tokens,
        text="text",
    )
    return AttentionView(state, small=small, values=values)


def test_a_head_is_told_in_a_sentence_that_the_shares_prove() -> None:
    found = made()
    state, _, packed = attention_state(found, title="", note="", layers=[], tokens=WORDS, text="")
    values = unpack_values(state, packed)

    before = float(np.mean([values[at, at - 1] for at in range(1, 37)]))
    assert f"{before:.0%}".replace("%", "\u00a0%") + " to the token before it" in state["sentence"]
    assert state["sentence"].startswith("Head 2 of layer 12 gives, on average, ")
    assert attention_state(made(600), title="", note="", layers=[], tokens=[], text="")[0]["sentence"] == ""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [(37, 9), (600, 32), (8, 2)])
def test_every_text_has_contrast_in_both_themes(open_widget, dressed, size, theme):
    measured = dressed(open_widget(widget(made(*size))), theme, f"attention-{size[0]}-{theme}")

    assert len(measured) > 15
    assert [text for ratio, text in measured if ratio < 4.5] == []


@pytest.mark.parametrize("width", [700, 480])
def test_nothing_overflows_a_narrow_place(open_widget, squeezed, width):
    assert squeezed(open_widget(widget(made(37, 16))), width, f"attention-{width}") == []


def test_what_a_screen_reader_hears(open_widget):
    from playwright.sync_api import expect

    view = open_widget(widget(made(12, 3)))

    expect(view.page.locator("body")).to_match_aria_snapshot(
        """
        - 'group "Attention: smollm2"':
          - toolbar "Attention":
            - button "Layer before"
            - combobox "Layer"
            - button "Next layer"
          - group "Heads":
            - button "Head 0"
            - button "Head 1"
            - button "Head 2" [pressed]
          - 'img "Head 2 of layer 12: 12 tokens look at 12; the stronger the larger the share"'
          - table "Tokens that it looks at most"
          - status: /Head 2 of layer 12 gives/
        """
    )
    hidden = view.page.locator("option", has_text="layer 13")
    assert hidden.text_content() == "layer 13, not observable"
    assert hidden.is_disabled()


def test_keys_clicks_and_links_choose_a_pair_a_head_and_a_layer(open_widget):
    found = made(12)
    view = open_widget(widget(found))
    asked: list[tuple[str, dict[str, Any]]] = []
    view.widget.on_ask(lambda what, details: asked.append((what, details)))
    title, readout = view.page.locator(".ma-side .mv-title"), view.page.locator(".ma-readout")
    assert title.inner_text() == "11 <|im_start|> looks at"

    view.page.locator(".ma-canvas").focus()
    for key in ("ArrowUp", "ArrowUp", "ArrowUp", "ArrowRight", "ArrowRight"):
        view.page.keyboard.press(key)
    view.settle()
    assert title.inner_text() == "8 ·France looks at"
    share = found.values[8, 2]
    assert readout.inner_text().startswith("8 ·France → 2 ↵: ")
    assert float(readout.inner_text().split(": ")[1].removesuffix(" %")) == pytest.approx(
        100 * share, rel=0.05
    )
    assert view.sent[-1]["place"] == {"layer": 12, "rank": 0, "head": 2, "token": 8}
    most = int(found.values[8].argmax())
    assert view.page.locator(".ma-top th").first.inner_text().split()[0] == str(most)

    view.button("Head 5").click()
    view.button("Head 5").focus()
    view.page.keyboard.press("ArrowLeft")
    view.page.keyboard.press("]")
    view.settle()
    assert asked == [
        ("head", {"head": 5}),
        ("head", {"head": 1}),
        ("layer", {"layer": 14}),
    ]  # 13 is not observable
    sent = len(view.sent)
    view.widget.place = {"token": 4}
    view.settle()
    assert title.inner_text() == "4 ·is looks at"
    assert len(view.sent) == sent  # no echo


def test_a_long_prompt_shares_cells_and_stays_in_the_budget(open_widget):
    view = open_widget(widget(made(600, 32)))
    assert view.widget.comm.size_bytes < 512 * 1024
    box = view.page.locator(".ma-canvas").bounding_box()
    view.page.mouse.move(box["x"] + 60, box["y"] + 200)
    assert "–" in view.page.locator(".ma-readout").inner_text()
    view.page.evaluate("cleanup()")
    assert view.page.evaluate("listeners()") == 0


def test_slots_of_a_ring_have_numbers_and_no_tokens(open_widget):
    view = open_widget(widget(made(12, ring=True)))
    assert view.page.locator(".ma-top th").first.inner_text().startswith("slot ")
    assert not view.page.locator(".mv-sentence").is_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_that_stays_says_the_same_without_a_script(still_page, theme):
    found = made()
    page = still_page(widget(found).html(), theme, f"attention-static-{theme}")

    assert page.locator(".ma-head img").count() == 9
    assert page.locator(".ma-large").evaluate("node => node.naturalWidth") == 37 * (440 // 37)
    last = page.locator(".ma-side tbody tr").last
    assert last.locator("th").inner_text() == "36 What"
    assert last.locator("td").inner_text().startswith(f"{int(found.values[36].argmax())} ")
    assert "Head 2 of layer 12 gives" in page.locator(".mv-sentence").inner_text()
