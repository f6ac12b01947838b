"""The stepper's view in Chromium: what a press sends, and what Python's answers draw."""

import time
from concurrent.futures import Future

import pytest

from mlx_nb.shared.errors import NoModelError

pytestmark = pytest.mark.browser

KEYS = {
    "into": "s",
    "over": "n",
    "out": "r",
    "layer": "l",
    "rank": "k",
    "token": "t",
    "back": "b",
    "run": "c",
}
LABELS = {stride: stride.capitalize() for stride in KEYS} | {"restart": "Restart", "close": "Close"}


@pytest.fixture
def view(open_view):
    return open_view("mid_prefill")


@pytest.mark.parametrize("stride", LABELS)
def test_each_button_sends_its_stride(view, stride):
    asked = []
    view.widget.on_action(asked.append)

    view.button(LABELS[stride]).click()
    view.settle()

    assert asked == [stride]
    assert [(m["kind"], m["stride"]) for m in view.sent] == [("stride", stride)]


@pytest.mark.parametrize("stride", KEYS)
def test_each_key_sends_its_stride_while_the_view_has_the_focus(view, stride):
    asked = []
    view.widget.on_action(asked.append)

    view.page.keyboard.press(KEYS[stride])  # the control: without focus nothing happens
    view.settle()
    assert asked == []

    view.root.focus()
    view.page.keyboard.press(KEYS[stride])
    view.settle()
    assert asked == [stride]


def test_ids_differ_from_press_to_press(view):
    view.root.focus()
    for key in "sss":
        view.page.keyboard.press(key)
        view.settle()

    assert len({message["id"] for message in view.sent}) == 3


def test_keys_that_end_a_run_do_not_exist(view):
    view.root.focus()
    for key in ["q", "x", "i", "d", "Escape", "Enter", "Shift+S", "Control+s"]:
        view.page.keyboard.press(key)
    view.settle()

    assert view.sent == []


def test_plain_keys_do_not_reach_the_notebook(view):
    view.page.evaluate("window.leaked = []; document.addEventListener('keydown', (e) => leaked.push(e.key))")
    view.root.focus()
    for key in ["s", "d", "d", "x", "Enter", " ", "Control+s", "ArrowDown", "Escape"]:
        view.page.keyboard.press(key)
    view.settle()

    # Ctrl+S still saves, and the arrows and Escape still leave the view.
    assert view.page.evaluate("leaked") == ["Control", "s", "ArrowDown", "Escape"]


def test_a_stride_draws_the_state_that_its_callback_shows(view, states):
    state, preview = states.make("decode")
    view.widget.on_action(lambda _stride: view.widget.show(state, preview) and None)

    view.button("Into").click()
    view.settle()

    assert view.root.locator(".mv-site").inner_text() == "lm_head.output"
    assert view.root.get_attribute("aria-busy") == "false"


def test_stale_states_are_dropped_and_equal_ones_drawn(view):
    def show(sequence, sentence):
        # Past `show`, which would drop it on this side already.
        view.widget.state = {**view.widget.state, "sequence": sequence, "sentence": sentence}
        view.flush()
        view.settle()
        return view.root.get_by_role("status").inner_text()

    assert show(9, "nine") == "nine"
    assert show(8, "eight") == "nine"
    assert show(9, "nine, corrected") == "nine, corrected"
    assert show(10, "ten") == "ten"


def test_python_drops_a_stale_state_before_it_travels(view):
    assert view.widget.show({**view.widget.state, "sequence": 9})
    assert not view.widget.show({**view.widget.state, "sequence": 8, "sentence": "late"})
    assert view.widget.show({**view.widget.state, "sequence": 0, "sentence": "unnumbered"})
    assert view.widget.state["sequence"] == 10


def test_state_and_preview_travel_in_one_message(view, states):
    view.widget.show(*states.make("decode"))

    (message,) = view.outbox
    assert set(message["state"]) | set(message["buffers"]) == {"state", "preview"}


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (NoModelError("No model is loaded.", "Type: %mlx_load smollm2"), "Type: %mlx_load smollm2"),
        (KeyError("layers.99"), "KeyError: 'layers.99'"),
    ],
)
def test_an_error_in_a_callback_lands_in_the_pane(view, error, shown):
    def fail(stride):
        raise error

    view.widget.on_action(fail)
    view.button("Layer").click()
    view.settle()

    assert shown in view.page.get_by_role("alert").inner_text()
    assert view.root.get_attribute("aria-busy") == "false"

    view.widget.on_action(lambda _stride: view.widget.show({**view.widget.state, "error": ""}) and None)
    view.button("Layer").click()
    view.settle()
    assert view.root.locator(".mv-error").is_hidden()


def test_a_view_that_nobody_listens_to_says_so(view):
    view.button("Into").click()
    view.settle()

    assert "Nothing runs the strides" in view.page.get_by_role("alert").inner_text()


def test_while_a_stride_is_under_way_only_stop_answers(view):
    work, stops = Future(), []
    view.widget.on_action(lambda _stride: work)
    view.widget.on_interrupt(lambda: stops.append("stop"))
    run = view.button("Run")
    run.click()
    view.settle()
    assert view.root.get_attribute("aria-busy") == "true"

    for key in "snrlktc":
        view.page.keyboard.press(key)
    view.settle()
    assert len(view.sent) == 1

    stop = view.button("Stop")
    stop.wait_for()
    assert view.button("Into").get_attribute("aria-disabled") == "true"
    assert view.page.evaluate("document.activeElement.textContent") == "Stop i"  # it took over the focus
    view.page.keyboard.press("i")
    stop.click()
    view.settle()
    assert stops == ["stop", "stop"]

    work.set_result(None)
    view.flush()
    view.settle()
    assert view.root.get_attribute("aria-busy") == "false"
    assert stop.is_hidden()
    assert view.button("Into").get_attribute("aria-disabled") == "false"
    assert view.page.evaluate("document.activeElement.textContent") == "Run c"


def test_a_future_that_fails_lands_in_the_pane(view):
    work = Future()
    view.widget.on_action(lambda _stride: work)
    view.button("Run").click()
    view.settle()

    work.set_exception(NoModelError("No model is loaded.", "Type: %mlx_load smollm2"))
    view.flush()
    view.settle()

    assert "No model is loaded." in view.page.get_by_role("alert").inner_text()


def test_without_a_handler_no_stop_is_offered(view):
    work = Future()
    view.widget.on_action(lambda _stride: work)
    view.button("Run").click()
    view.settle()
    view.page.wait_for_timeout(400)

    assert view.root.locator(".mv-pill").inner_text() == "running"
    assert view.button("Stop").count() == 0
    work.set_result(None)


def test_while_a_stride_is_under_way_nothing_says_that_it_stands(view):
    work = Future()
    view.widget.on_action(lambda _stride: work)
    before = view.root.inner_text()
    assert "37 pending" in before  # the control
    view.button("Run").click()
    view.settle()
    view.page.wait_for_timeout(400)

    statuses = view.root.locator(".ms-status")
    assert statuses.all_inner_texts() == ["running", "running"]
    assert view.root.locator(".ms-cell.current").count() == 0
    assert view.root.get_by_role("status").inner_text() == "Running."
    assert view.root.locator(".mv-where").inner_text() == ""
    opacity = "node => Number(getComputedStyle(node).opacity)"
    assert view.root.locator(".ms-panes").evaluate(opacity) < 0.5

    work.set_result(None)
    view.flush()
    view.settle()
    assert view.root.inner_text() == before
    assert view.root.locator(".ms-panes").evaluate(opacity) == 1


def test_a_short_stride_does_not_make_the_buttons_flicker(view):
    view.page.evaluate(
        """() => {
          window.looks = [];
          new MutationObserver(() => looks.push(document.querySelector(".mlxnb-stepper").className))
            .observe(document.querySelector(".mlxnb-stepper"), { attributeFilter: ["class"], subtree: true });
        }"""
    )
    view.widget.on_action(lambda _stride: time.sleep(0.02))
    view.button("Into").click()
    view.settle()

    assert not any("busy" in look for look in view.page.evaluate("looks"))


def test_a_stride_that_a_cell_runs_shows_too(view):
    view.widget.busy = "token"
    view.flush()

    assert view.root.get_attribute("aria-busy") == "true"
    view.root.focus()
    view.page.keyboard.press("s")
    view.settle()
    assert view.sent == []


@pytest.mark.parametrize("name", ["finished", "failed"])
def test_past_the_end_only_back_restart_and_close_are_left(open_view, name):
    view = open_view(name)
    asked = []
    view.widget.on_action(asked.append)
    view.root.focus()
    for key in KEYS.values():
        view.page.keyboard.press(key)
    view.settle()
    view.button("Into").click(force=True)
    view.button("Restart").click()
    view.settle()

    assert asked == ["back", "restart"]


def test_template_tokens_unfold_and_fold_again(view):
    strip = view.page.get_by_role("group", name="Tokens")
    before = strip.locator(".ms-token").count()

    strip.get_by_role("button", name="… 23 more").click()
    assert strip.locator(".ms-token").count() == before + 23
    assert strip.get_by_title("token 10 ·").count() == 1

    strip.get_by_role("button", name="fold").click()
    assert strip.locator(".ms-token").count() == before


def test_a_long_run_of_tokens_unfolds_in_portions(open_view, states):
    view = open_view("mid_prefill")
    many = [{**token, "template": False} for token in states.tokens(2000)]
    view.widget.show({**view.widget.state, "sequence": 0, "tokens": many})
    view.flush()
    view.settle()

    view.button("… 1,952 more").click()
    assert view.button("… 1,452 more").is_visible()


def test_a_strip_of_which_a_part_was_not_sent_folds_once(open_view, states):
    view = open_view("crowded")
    strip = view.page.get_by_role("group", name="Tokens")
    chip = strip.locator(".ms-more")
    shown = strip.locator(".ms-token").count()

    assert strip.evaluate("node => node.scrollHeight <= node.clientHeight")
    assert chip.all_inner_texts() == ["… 4,102 more"]
    assert chip.get_attribute("title") == "Show tokens 24 to 4125"
    assert strip.get_by_title("token 4126 ·").count() == 1
    looks = (
        "node => { const s = getComputedStyle(node); return [s.borderRadius, s.fontFamily, s.borderColor]; }"
    )
    token = strip.locator(".ms-token.p").first
    assert not set(chip.evaluate(looks)) & set(token.evaluate(looks))

    chip.click()
    assert chip.all_inner_texts() == ["… 3,950 more"]
    assert "is not sent" in chip.get_attribute("title")
    assert strip.locator(".ms-token").count() == shown + 152
    assert strip.get_by_title("token 3990 ·").count() == 1

    chip.click()
    assert chip.all_inner_texts() == ["… 4,102 more"]


def test_open_details_stay_open_from_stop_to_stop(view):
    view.page.get_by_text("KV cache", exact=True).click()
    view.widget.show({**view.widget.state, "sequence": 0})
    view.flush()
    view.settle()

    assert view.page.get_by_role("cell", name="KVCache").first.is_visible()


def test_text_from_a_model_is_never_markup(view):
    evil = '<img src=x onerror="document.title=1"><b>'
    state = view.widget.state

    def poison(value):
        if isinstance(value, str):
            return evil
        if isinstance(value, list):
            return [poison(item) for item in value]
        return {key: poison(item) for key, item in value.items()} if isinstance(value, dict) else value

    view.widget.show({**poison(state), "sequence": 0, "source": poison(state["source"])})
    view.flush()
    view.settle()

    assert view.root.locator("img, b b").count() == 0
    assert evil in view.root.locator(".mv-site").inner_text()
    assert view.page.title() == "one view"


def test_the_cleanup_removes_every_listener_and_timer(view):
    session = view.page.context.new_cdp_session(view.page)
    view.page.evaluate("window.oldRoot = document.querySelector('.mlxnb-stepper')")

    def listeners() -> int:
        held = session.send("Runtime.evaluate", {"expression": "oldRoot"})["result"]["objectId"]
        found = session.send("DOMDebugger.getEventListeners", {"objectId": held, "depth": -1})
        return len(found["listeners"])

    assert listeners() > 10  # the control: this is what a view without a cleanup would leave
    assert view.page.evaluate("window.listeners()") == 6

    view.page.evaluate("cleanup()")

    assert listeners() == 0
    assert view.page.evaluate("window.listeners()") == 0
    assert view.root.count() == 0
