"""The timeline's view in Chromium: what is drawn, zooming, keys, export, looks, and the picture that stays."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.client.timeline_view import window
from mlx_nb.shared.timeline import COMPUTE, SEND, Timeline
from mlx_nb.widgets.timeline import TimelineView
from mlx_nb.widgets.timeline_state import MOST_SPANS, pack_spans, timeline_state
from mlx_nb.widgets.timeline_static import PIXELS

pytestmark = pytest.mark.browser

HOSTS = ["mini1", "mini2", "mini3", "mini4"]
HOLDS = ["embed, layers 0–14", "layers 15–29, norm, head", "layers 30–44", "layers 45–59, norm, head"]

_spec = spec_from_file_location("mlx_nb_tests_timelines", Path(__file__).parent / "timelines.py")
assert _spec is not None
assert _spec.loader is not None
timelines: Any = module_from_spec(_spec)
_spec.loader.exec_module(timelines)


def widget(timeline: Timeline) -> TimelineView:
    state = timeline_state(timeline, "smollm2", "512 tokens of prompt, 12 generated", HOSTS, HOLDS)
    return TimelineView(state, spans=pack_spans(timeline)[0])


RUNS = {
    "two_ranks": timelines.make(),
    "one_chunk": timelines.make(chunks=1, tokens=4),
    "four_ranks": timelines.make(ranks=4, chunks=12, tokens=8),
    "alone": timelines.make(ranks=1, chunks=3),
    "long": timelines.make(chunks=100, tokens=1000),
}


@pytest.mark.parametrize("name", list(RUNS))
def test_every_text_has_contrast_in_both_themes(open_widget, dressed, name):
    view = open_widget(widget(RUNS[name]))
    for theme in ("light", "dark"):
        measured = dressed(view, theme, f"timeline-{name}-{theme}")

        assert len(measured) > 20
        assert [text for ratio, text in measured if ratio < 4.5] == [], theme


@pytest.mark.parametrize("width", [700, 480])
@pytest.mark.parametrize("name", ["two_ranks", "four_ranks"])
def test_nothing_overflows_a_narrow_place(open_widget, squeezed, name, width):
    assert squeezed(open_widget(widget(RUNS[name])), width, f"timeline-{name}-{width}") == []


PIXEL = """([x, y]) => {
  const copy = Object.assign(document.createElement("canvas"), { width: 1, height: 1 }).getContext("2d");
  copy.drawImage(document.querySelector("canvas"), -x * devicePixelRatio, -y * devicePixelRatio);
  return [...copy.getImageData(0, 0, 1, 1).data];
}"""
AXIS, LANE, BAR = 24, 46, 26


def pixel(view: Any, timeline: Timeline, rank: int, seconds: float) -> tuple[int, ...]:
    """The colour near the top of a lane at a time; the whole run is shown."""
    wide = view.page.evaluate("document.querySelector('canvas').clientWidth")
    at = [seconds / timeline.length() * wide, AXIS + rank * LANE + 8]
    return tuple(view.page.evaluate(PIXEL, at)[:3])


def test_lanes_are_filled_where_a_rank_computes_and_empty_where_it_waits(open_widget, jupyterlab):
    timeline = RUNS["two_ranks"]
    view = open_widget(widget(timeline))
    jupyterlab("light")
    view.page.wait_for_timeout(100)
    decode = [s for s in timeline.spans if s.phase == "decode"]
    seen = {kind: set() for kind in ("compute", "wait")}
    for span in decode:
        if span.kind in seen:
            seen[span.kind].add(pixel(view, timeline, span.rank, (span.begin_s + span.end_s) / 2))

    assert seen["compute"] == {(47, 111, 219), (90, 142, 230)}  # neighbours differ
    assert len(seen["wait"]) == 1
    assert not seen["wait"] & seen["compute"]


def test_what_a_screen_reader_hears(open_widget):
    from playwright.sync_api import expect

    view = open_widget(widget(RUNS["two_ranks"]))

    expect(view.page.locator("body")).to_match_aria_snapshot(
        """
        - 'group "Timeline: smollm2"':
          - text: smollm2 3.6 s · bubbles 33 % 512 tokens of prompt, 12 generated
          - toolbar "Timeline":
            - button "Zoom out"
            - button "Zoom in"
            - button "All"
            - button "Prefill"
            - button "Decode"
            - button "Save…"
          - text: rank 0 mini1 embed, layers 0–14 rank 1 mini2 layers 15–29, norm, head
          - img /3.6 s · bubbles 33 %; rank 0 computes \\d+ % of the time, rank 1 computes \\d+ % of the time/
          - table:
            - rowgroup:
              - row "rank phase passes compute send wait busy"
            - rowgroup:
              - row /0 prefill 8/
              - row /1 prefill 8/
              - row /0 decode 12/
              - row /1 decode 12/
          - status: /Prefill. 8 chunks in 1\\.\\d s; one rank after the other would take 3\\.\\d s\\. Decode/
        """
    )


def test_keys_go_from_span_to_span_and_zoom(open_widget):
    view = open_widget(widget(RUNS["two_ranks"]))
    readout = view.page.locator(".mt-readout")
    view.page.locator("canvas").focus()
    press = view.page.keyboard.press

    press("ArrowRight")
    assert readout.inner_text() == "rank 0 · prefill 0:64 · computes 180.0 ms · from 0.0 ms"
    press("ArrowRight")
    assert readout.inner_text().startswith("rank 0 · prefill 0:64 · sends 2.0 ms")
    press("ArrowDown")
    assert readout.inner_text().startswith("rank 1 · prefill 0:64 · ")
    press("End")
    assert readout.inner_text().startswith("rank 1 · decode 523:524 · computes")
    for _ in range(8):
        press("+")
    press("ArrowLeft")
    press("ArrowLeft")
    assert readout.inner_text().startswith("rank 1 · decode 522:523 · computes")  # it moved along
    press("Escape")
    press("0")
    view.settle()
    assert [m["place"] for m in view.sent if m["kind"] == "place"][-1] == {"rank": 1, "token": 522}


@pytest.mark.parametrize("after", ["one_chunk", "four_ranks"])
def test_the_run_after_the_last_one_is_shown_whole(open_widget, after):
    view = open_widget(widget(RUNS["two_ranks"]))
    view.page.locator("canvas").focus()
    view.page.keyboard.press("+")
    readout = view.page.locator(".mt-readout")
    assert " from " in readout.inner_text()  # the control: a part of it

    view.widget.show({**widget(RUNS[after]).state, "sequence": 0}, spans=pack_spans(RUNS[after])[0])
    view.settle()

    assert readout.inner_text() == ""


def test_a_click_picks_a_place_and_a_place_from_elsewhere_is_shown(open_widget):
    timeline = RUNS["two_ranks"]
    view = open_widget(widget(timeline))
    box = view.page.locator("canvas").bounding_box()
    span = next(s for s in timeline.spans if s.rank == 1 and s.kind == COMPUTE and s.index == 3)
    across = (span.begin_s + span.end_s) / 2 / timeline.length() * box["width"]

    view.page.mouse.click(box["x"] + across, box["y"] + AXIS + LANE + 15)
    view.settle()
    assert view.sent[-1] == {"kind": "place", "place": {"rank": 1, "token": 255}}

    view.widget.place = {"site": "layers.3.output", "rank": 0, "layer": 3, "token": 130}
    view.settle()
    assert view.page.locator(".mt-readout").inner_text().startswith("rank 0 · prefill 128:192 · computes")
    assert len([m for m in view.sent if m["kind"] == "place"]) == 1  # no echo


def test_a_long_run_comes_pooled_and_a_part_of_it_span_by_span(open_widget):
    timeline = timelines.make(chunks=400, tokens=4000)
    assert len(timeline.spans) > MOST_SPANS
    view = widget(timeline)
    assert view.state["pooled"]
    view.on_ask(lambda _what, details: window(timeline, details))
    page = open_widget(view)
    assert page.widget.comm.size_bytes < 400 * 1024
    readout = page.page.locator(".mt-readout")
    page.page.locator("canvas").focus()

    page.page.keyboard.press("ArrowRight")
    assert "zoom in for single spans" in readout.inner_text()
    for _ in range(6):
        page.page.keyboard.press("+")
    page.wait_for(lambda: any(m["kind"] == "ask" for m in page.sent))
    page.settle()
    assert readout.inner_text() == "rank 0 · prefill 0:64 · computes 180.0 ms · from 0.0 ms"
    assert len([m for m in page.sent if m["kind"] == "ask"]) == 1  # one question for six presses
    page.button("Save…").click()
    page.wait_for(lambda: page.page.locator(".mv-error").is_visible())
    assert "too many for this page" in page.page.locator(".mv-error").inner_text()


def test_the_page_saves_what_python_saves(open_widget):
    timeline = RUNS["one_chunk"]
    view = open_widget(widget(timeline))
    with view.page.expect_download() as download:
        view.button("Save…").click()
    saved = json.loads(Path(download.value.path()).read_text())
    ours = timeline.chrome_trace()

    assert download.value.suggested_filename == "timeline.json"
    assert saved["traceEvents"][:2] == ours["traceEvents"][:2]
    for mine, theirs in zip(saved["traceEvents"][2:], ours["traceEvents"][2:], strict=True):
        assert mine == {**theirs, "ts": pytest.approx(theirs["ts"]), "dur": pytest.approx(theirs["dur"])}


def test_nothing_is_left_when_the_view_ends(open_widget):
    view = open_widget(widget(RUNS["two_ranks"]))
    assert view.page.evaluate("listeners()") > 0
    view.page.evaluate("cleanup()")
    assert view.page.evaluate("listeners()") == 0
    assert view.page.locator(".mlxnb-view").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_that_stays_says_the_same_without_a_script(still_page, theme):
    timeline = RUNS["two_ranks"]
    page = still_page(widget(timeline).html(), theme, f"timeline-static-{theme}")
    text = page.locator(".mlxnb-view").inner_text()
    bars = page.locator(".mt-bar img")

    assert "rank 1 mini2" in text.replace("\n", " ")
    assert "Decode:" in text
    assert page.locator(".mt-table tbody tr").count() == 4
    assert bars.count() == 2
    assert bars.first.evaluate("node => node.naturalWidth") == PIXELS


def test_the_picture_of_a_lane_is_blue_where_the_rank_computes(chromium):
    timeline = RUNS["two_ranks"]
    page = chromium.new_page()
    page.set_content(widget(timeline).html())
    columns = (
        page.locator(".mt-bar img")
        .nth(1)
        .evaluate(
            """(image) => {
          const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: 1 });
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          return [...context.getImageData(0, 0, canvas.width, 1).data].filter((_, i) => i % 4 === 3).map((alpha) => alpha > 0);
        }"""
        )
    )
    share = sum(columns) / len(columns)
    page.close()

    busy = timeline.total(1, COMPUTE) + timeline.total(1, SEND)
    assert share == pytest.approx(busy / timeline.length(), abs=0.02)
    assert not columns[0]  # rank 1 waits for the first chunk
