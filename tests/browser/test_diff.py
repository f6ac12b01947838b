"""The view of a comparison in Chromium: bars, drill-down, the difference as a picture, looks, what stays."""

from dataclasses import replace

import numpy as np
import pytest

from mlx_nb.shared.diff_report import DiffReport, DiffRow, Distance
from mlx_nb.shared.preview import unpack_preview
from mlx_nb.widgets.diff import DiffView
from mlx_nb.widgets.diff_state import diff_state

pytestmark = pytest.mark.browser


class Nobody:
    """Makes layers open; the test answers itself."""

    def inside(self, layer):
        raise NotImplementedError

    def gap(self, site):
        raise NotImplementedError


def row(site: str, relative: float, forced: float | None, layer: int) -> DiffRow:
    def distance(size: float) -> Distance:
        return Distance(max=10 * size, mean=size / 3, relative=size, cosine=1 - size)

    return DiffRow(
        site=site, rank=0 if layer < 6 else 1, other_rank=0, layer=layer, dtype="float32", tolerance=1e-4,
        free=distance(relative), forced=None if forced is None else distance(forced),
    )  # fmt: skip


def made(ok: bool = False) -> DiffReport:
    rows = []
    for layer in range(12):
        bad = layer >= 7 and not ok
        rows.append(
            row(
                f"layers.{layer}.output",
                0.02 * (layer - 6) if bad else 3e-7,
                0.3 if layer == 7 and bad else 2e-8,
                layer,
            )
        )
    broken = replace(row("logits", 0.4, None, -1), free=replace(row("logits", 0.4, None, -1).free, holes=3))
    return DiffReport(
        model="mymodel",
        other="smollm2 in one process",
        tokens=37,
        rows=(row("embed_tokens.output", 0.0, 0.0, -1), *rows, *([] if ok else [broken])),
        clues=() if ok else ("Token 0 is right and all others are wrong.",),
        notes=("a note",),
        closer=Nobody(),
    )


INSIDE = (
    row("layers.7.self_attn.q_proj.output", 3e-7, 2e-8, 7),
    row("layers.7.mlp.up_proj.output", 0.2, 0.5, 7),
)
GAP = np.random.default_rng(2).normal(0, 1e-3, (1, 37, 576)).astype(np.float32)
GAP[0, 20, 138] = -4.5


def widget(report: DiffReport, *, closer: bool = False) -> DiffView:
    state, gap = diff_state(
        report, {7: INSIDE} if closer else {}, ("layers.7.output", GAP) if closer else None
    )
    return DiffView(state, gap=gap)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_text_has_contrast_in_both_themes(open_widget, dressed, theme):
    view = open_widget(widget(made(), closer=True))
    view.page.get_by_role("button", name="Modules of layer 7").click()
    measured = dressed(view, theme, f"diff-{theme}")

    assert len(measured) > 60
    assert [text for ratio, text in measured if ratio < 4.5] == []


@pytest.mark.parametrize("width", [700, 480])
def test_nothing_overflows_a_narrow_place(open_widget, squeezed, width):
    assert [
        one
        for one in squeezed(open_widget(widget(made(), closer=True)), width, f"diff-{width}")
        if "md-scroll" not in one
    ] == []


def test_what_a_screen_reader_hears(open_widget):
    from playwright.sync_api import expect

    view = open_widget(widget(made(ok=True)))
    expect(view.page.locator("body")).to_match_aria_snapshot(
        """
        - 'group "Diff: mymodel"':
          - table:
            - rowgroup:
              - row "site rank max mean relative forced"
            - rowgroup:
              - row /embed_tokens.output/:
                - rowheader:
                  - button "embed_tokens.output"
              - row /layers.0.output/:
                - rowheader:
                  - button "Modules of layer 0"
                  - button "layers.0.output"
        """
    )
    assert view.page.locator(".mv-pill").inner_text() == "the same"


def test_a_layer_opens_into_its_modules_and_a_site_into_a_picture(open_widget):
    report = made()
    view = open_widget(widget(report))
    asked = []

    def answer(what, details):
        asked.append((what, details))
        inside = {7: INSIDE}
        gap = (details["site"], GAP) if what == "gap" else None
        state, packed = diff_state(report, inside, gap)
        view.widget.show(state, gap=packed)

    view.widget.on_ask(answer)
    assert view.page.locator("tr.differs").count() == 2
    assert (
        view.page.locator("tr", has_text="logits").locator(".md-verdict").inner_text()
        == "differs · 3 NaN or Inf"
    )
    wide = [bar.evaluate("node => node.offsetWidth") for bar in view.page.locator(".free").all()]
    assert wide[0] == 0
    assert wide[8] > 3 * wide[7] > 0  # 0.02 and 3e-7, as logarithms

    view.page.locator(".md-go").first.focus()
    for key in (*["ArrowDown"] * 8, "ArrowRight"):
        view.page.keyboard.press(key)
    view.wait_for(lambda: view.page.locator("tr.within").count() == 2)
    view.page.get_by_role("button", name="layers.7.mlp.up_proj.output").click()
    view.wait_for(lambda: view.page.locator(".md-gap").is_visible())
    view.settle()
    assert asked == [("inside", {"layer": 7}), ("gap", {"site": "layers.7.mlp.up_proj.output"})]
    assert "largest -4.50 at [0,20,138]" in view.page.locator(".md-picture .mv-note").inner_text().replace(
        "−", "-"
    )
    view.page.keyboard.press("ArrowUp")
    view.page.keyboard.press("ArrowUp")
    view.page.keyboard.press("ArrowLeft")
    assert view.page.locator("tr.within").count() == 0

    width, _, cells = unpack_preview(view.widget.gap)
    assert cells[20 * width + 138 * width // 576] == 0  # the strongest blue
    assert view.widget.comm.size_bytes < 128 * 1024
    view.page.evaluate("cleanup()")
    assert view.page.evaluate("listeners()") == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_that_stays_says_the_same_without_a_script(still_page, theme):
    page = still_page(widget(made(), closer=True).html(), theme, f"diff-static-{theme}")

    assert page.locator("tbody tr").count() == 14 + 2
    assert page.locator("tr.within th").first.inner_text() == "layers.7.self_attn.q_proj.output"
    assert page.locator("img.md-gap").count() == 1
    assert "Token 0 is right" in page.locator(".md-told").inner_text()
