"""The Python half of the stepper's view: what is refused, what is numbered, what stays behind."""

import re
import struct
import sys
import threading
import types
import zlib
from concurrent.futures import Future

import numpy as np
import pytest
from traitlets import TraitError

from mlx_nb.shared.preview import colour_indices, make_preview, pack_preview
from mlx_nb.shared.view_state import StepperState, empty_state
from mlx_nb.widgets.markup import tag
from mlx_nb.widgets.png import preview_png, strip_png
from mlx_nb.widgets.stepper import STRIDES, StepperView
from mlx_nb.widgets.stepper_static import stepper_html, stepper_text

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


def state(**changes) -> StepperState:
    return {**empty_state(), "model": "smollm2", "status": "stopped", **changes}


def press(view: StepperView, stride: str, number: int = 1) -> None:
    view._on_message(view, {"kind": "stride", "stride": stride, "id": number}, [])


def test_a_misspelled_trait_raises():
    view = StepperView()

    with pytest.raises(AttributeError, match=r"no trait 'stat'.*Did you mean 'state'"):
        view.stat = {}
    with pytest.raises(AttributeError, match=r"no trait 'previw'.*Did you mean 'preview'"):
        StepperView(previw=b"")
    with pytest.raises(TraitError, match=r"no 'sentense'.*Did you mean 'sentence'"):
        view.show({**state(), "sentense": ""})


def test_states_without_a_number_are_numbered_and_late_ones_dropped():
    view = StepperView(state=state())
    assert view.state["sequence"] == 1

    assert view.show(state(sentence="two"))
    assert view.show(state(sequence=7, sentence="seven"))
    assert not view.show(state(sequence=6, sentence="six"))
    assert view.state["sentence"] == "seven"
    assert view.show(state(sentence="eight"))
    assert view.state["sequence"] == 8


def test_an_error_keeps_the_state_and_its_number():
    view = StepperView(state=state(sequence=4, sentence="Here."))

    view.fail("It broke.")

    assert (view.state["sequence"], view.state["sentence"], view.state["error"]) == (4, "Here.", "It broke.")


@pytest.mark.parametrize("stride", STRIDES)
def test_a_callback_gets_the_stride_and_the_view_is_busy_meanwhile(stride):
    view, seen = StepperView(state=state()), []
    view.on_action(lambda asked: seen.append((asked, view.busy)))

    press(view, stride)

    assert seen == [(stride, stride)]
    assert view.busy == ""


def test_a_second_stride_is_dropped_while_one_is_under_way():
    view, asked, work = StepperView(state=state()), [], Future()
    view.on_action(lambda stride: asked.append(stride) or work)

    press(view, "run", 1)
    press(view, "into", 2)
    assert (asked, view.busy) == (["run"], "run")

    threading.Thread(target=work.set_result, args=(None,)).run()
    assert view.busy == ""
    press(view, "into", 3)
    assert asked == ["run", "into"]


def test_a_callback_that_raises_leaves_the_view_ready_and_the_traceback_in_the_pane():
    view = StepperView(state=state())
    view.on_action(lambda _stride: 1 / 0)

    press(view, "into")

    assert view.busy == ""
    assert "ZeroDivisionError" in view.state["error"]
    assert "Traceback" in view.state["error"]


def test_an_interrupt_that_passes_through_leaves_the_view_ready():
    def interrupted(_stride):
        raise KeyboardInterrupt

    view = StepperView(state=state())
    view.on_action(interrupted)
    with pytest.raises(KeyboardInterrupt):
        press(view, "into")

    assert view.busy == ""


def test_a_cancelled_future_is_not_an_error():
    view, work = StepperView(state=state()), Future()
    view.on_action(lambda _stride: work)
    press(view, "run")

    work.cancel()

    assert (view.busy, view.state["error"]) == ("", "")


def test_an_unknown_message_is_not_lost():
    view = StepperView(state=state())

    view._on_message(view, {"kind": "strid", "stride": "into"}, [])

    assert "strid" in view.state["error"]


def test_the_widget_has_a_plain_text_form_and_a_picture_without_a_widget():
    view = StepperView(state=state(sentence="Rank 0 waits."), preview=make_preview(np.eye(4)))

    bundle, metadata = view._repr_mimebundle_()
    assert "Rank 0 waits." in bundle["text/plain"]
    assert bundle[WIDGET_MIME]["model_id"] == view.model_id
    assert metadata == {}
    assert set(view.picture()) == {"text/html", "text/plain"}


def test_in_colab_the_page_is_told_what_draws_widgets(monkeypatch):
    manager = types.SimpleNamespace(
        enable_custom_widget_manager=lambda: None,
        _widgets=types.SimpleNamespace(_installed_url="https://manager.test"),
    )
    monkeypatch.setitem(sys.modules, "google.colab.output", manager)

    _, metadata = StepperView(state=state())._repr_mimebundle_()

    assert metadata[WIDGET_MIME]["colab"]["custom_widget_manager"] == {"url": "https://manager.test"}


def test_the_plain_text_says_what_the_screen_says():
    lane = {"rank": 0, "host": "mini1", "holds": "embed", "status": "waits", "note": "37 written"}
    text = stepper_text(
        state(
            where="prefill 0:37",
            lanes=[{**lane, "embed": None, "head": None, "layers": []}],
            site="layers.3",
            suffix=".input",
            arguments=[{"name": "x", "shape": "[1, 37, 576]", "dtype": "float32", "size": "83 KiB"}],
            numbers=[{"name": "min", "value": "-3.1"}],
            sentence="Rank 0 waits.",
            error="Oh.",
        )
    )

    assert text.split("\n") == [
        "Stepper smollm2 · prefill 0:37 · stopped",
        " rank 0  mini1  embed  waits  37 written",
        "layers.3.input",
        " x  [1, 37, 576]  float32  83 KiB",
        " min -3.1",
        "Rank 0 waits.",
        "Oh.",
    ]
    assert stepper_text(state(text="as the maker says")) == "as the maker says"


def test_the_picture_is_inert_and_escapes_what_it_shows():
    html = stepper_html(state(prompt="<script>alert(1)</script>", error='"><img src=x onerror=1>'))

    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"<[^>]*(src|href)=|url\(|@import|https?:", html)
    assert tag("td", "a & b", title='"') == '<td title="&quot;">a &amp; b</td>'


def test_the_preview_says_where_its_colours_end():
    preview = pack_preview(1, 1, b"\x00", 4.379)

    assert StepperView(state=state(), preview=preview).state["preview_limit"] == "4.38"
    assert "+4.38" in stepper_html(state(preview_limit="9"), preview)
    assert "+9" in stepper_html(state(preview_limit="9"), pack_preview(1, 1, b"\x00"))


def decode_png(png: bytes) -> np.ndarray:
    """A palette PNG as ``[height, width, 4]``."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack_from(">I", png, at)
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + size
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert form == [8, 3, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    colours = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    alphas = np.frombuffer(chunks[b"tRNS"], np.uint8)
    return np.concatenate([colours[rows[:, 1:]], alphas[rows[:, 1:], None]], axis=-1)


def test_the_png_has_blue_nothing_and_orange():
    pixels = decode_png(preview_png(pack_preview(3, 1, colour_indices(np.array([[-1.0, 0, 1]])).tobytes())))

    assert pixels.shape == (1, 3, 4)
    assert pixels[0, 0].tolist() == [31, 95, 208, 255]
    assert pixels[0, 1, 3] == 0
    assert pixels[0, 2].tolist() == [217, 72, 15, 255]


def test_the_png_hatches_what_is_not_a_number():
    array = np.array([[np.nan, np.inf, -np.inf, 0.5]])

    pixels = decode_png(preview_png(pack_preview(4, 1, colour_indices(array).tobytes())))

    cells = np.split(pixels, 4, axis=1)
    assert len({cell.tobytes() for cell in cells}) == 4
    for cell in cells[:3]:
        assert {tuple(p) for p in cell.reshape(-1, 4).tolist()} == {(0, 0, 0, 255), (255, 225, 77, 255)}


def test_a_lane_is_an_image_too_for_where_styles_are_dropped():
    done, current, pending = (
        decode_png(strip_png([cell]))
        for cell in (("done", "written"), ("current", "pending"), ("pending", "none"))
    )

    assert done.shape == current.shape == pending.shape == (19, 14, 4)
    assert (done[:14, :12, 3] == 255).all()  # filled
    assert (pending[1:13, 1:11, 3] == 0).all()  # hollow
    assert (current[0, 0] != pending[0, 0]).any()
    assert (done[16:, :12, 3] == 255).all()
    assert current[17, 5, 3] == 0
    assert not pending[16:].any()

    layers = [{"layer": i, "state": "done", "kv": "written"} for i in range(80)]
    lane = {"rank": 0, "host": "", "holds": "", "status": "waits", "note": "", "embed": None, "head": None}
    html = stepper_html(state(lanes=[{**lane, "layers": layers}]))
    assert html.count("<img") == 1
    assert html.count("ms-cell done") == 40  # in groups of two


def test_a_picture_stays_small():
    noisy = np.random.default_rng(0).normal(size=(500, 900))
    noisy[3, 3] = np.nan

    assert len(stepper_html(state(), make_preview(noisy))) < 64 * 1024
