"""The cluster's view in a browser."""

import pytest

from mlx_nb.widgets.cluster import ClusterView

pytestmark = pytest.mark.browser

GIB = 2**30


def card(rank: int, **more):
    plain = {
        "rank": rank, "engine": rank, "host": f"mini{rank + 1}", "pid": 41207 + rank, "device": "Apple M4 Pro (Metal)",
        "holds": "embed, layers 0–14" if rank == 0 else "layers 15–29, norm, head", "state": "running", "why": "",
        "weights": "311 MiB", "kv": "5.6 MiB", "process": "402 MiB", "other": "6.1 GiB", "free": "9.6 GiB",
        "parts": [19, 1, 380, 600], "speed": "13.4", "fresh": True, "log": [],
    }  # fmt: skip
    return {**plain, **more}


def make(*cards, **more) -> ClusterView:
    lost = card(1, state="lost", why="Lost: its process 41208 ended; its log ends: Killed.", parts=[], weights="", kv="", process="",
                other="", free="", log=["Traceback (most recent call last):", "MemoryError: [malloc] Unable to allocate 1073741824 bytes"])  # fmt: skip
    state = {
        "name": "local-7f3a",
        "note": "3 ranks · 3 hosts · ends with this kernel",
        "status": "lost",
        "run": "smollm2 · running · 34 tokens",
        "ranks": list(cards) or [card(0), lost, card(2, state="waiting", host="a-very-long-host-name-of-a-mini.example.org")],
        "actions": ["pause", "interrupt", "restart", "stop"],
        "warnings": {"restart": "Restart local-7f3a? KV caches are lost; smollm2 is loaded again.", "stop": "Stop local-7f3a? smollm2 is unloaded."},
        "sentence": "The text so far: pipe.last.text",
        "text": "Cluster local-7f3a",
        **more,
    }  # fmt: skip
    return ClusterView(state)


def asked_of(view) -> list[str]:
    found: list[str] = []
    view.widget.on_ask(lambda what, _details: found.append(what))
    return found


@pytest.mark.parametrize(("theme", "width"), [("light", 944), ("dark", 944), ("dark", 700), ("light", 700)])
def test_it_is_legible_and_overflows_nothing(open_widget, looks, jupyterlab, shoot, theme, width):
    view = open_widget(make())
    jupyterlab(theme)
    view.page.set_viewport_size({"width": width, "height": 700})
    if width == 700:
        view.button("Stop…").click()
    view.page.wait_for_timeout(80)
    shoot(f"cluster-{theme}-{width}")

    assert [text for ratio, text in view.page.evaluate(looks.CONTRASTS) if ratio < 4.5] == []
    assert view.page.evaluate(looks.OVERFLOWING) == []
    assert [one for one in view.page.evaluate(looks.CLIPPED) if "mc-log" not in one] == []


def test_what_cannot_be_taken_back_is_asked_first(open_widget):
    view = open_widget(make())
    asked = asked_of(view)
    page, dialog = view.page, view.page.get_by_role("alertdialog")

    view.root.focus()
    page.keyboard.press("x")
    assert dialog.is_visible()
    assert "smollm2 is unloaded" in dialog.inner_text()
    page.keyboard.press("Enter")  # Cancel has the focus
    assert not dialog.is_visible()
    view.root.focus()
    page.keyboard.press("r")
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    view.settle()
    assert asked == []

    view.button("Stop…").click()
    view.button("Stop the cluster").click()
    view.root.focus()
    page.keyboard.press("p")
    page.keyboard.press("i")
    view.settle()
    assert asked == ["stop", "pause", "interrupt"]


def test_buttons_follow_what_makes_sense_and_a_stopped_cluster_starts_again(open_widget):
    view = open_widget(
        make(card(0, state="paused"), status="paused", actions=["resume", "interrupt", "restart", "stop"])
    )
    asked = asked_of(view)
    view.root.focus()
    view.page.keyboard.press("p")
    view.settle()
    assert asked == ["resume"]
    assert not view.page.get_by_role("button", name="Pause").is_visible()
    view.widget.show(
        {
            **view.widget.state,
            "sequence": 0,
            "actions": ["start"],
            "status": "ended",
            "ranks": [card(0, state="ended")],
        }
    )
    view.flush()
    view.button("Go on").wait_for(state="hidden")
    view.page.keyboard.press("x")
    view.button("Start again").click()
    view.settle()
    assert asked == ["resume", "restart"]
    assert not view.page.get_by_role("alertdialog").is_visible()


def test_screen_readers_hear_states_and_memory_and_nothing_stays_behind(open_widget):
    view = open_widget(make())
    said = view.root.aria_snapshot()
    assert 'group "Cluster: local-7f3a"' in said
    assert 'listitem "Rank 1"' in said
    assert "Memory of mini1: weights 311 MiB" in said
    assert "its process 41208 ended" in said
    view.page.evaluate("cleanup()")
    assert view.page.evaluate("window.listeners()") == 0


def test_an_update_moves_no_card_and_costs_little(open_widget):
    view = open_widget(make(*(card(rank) for rank in range(8))))
    view.page.evaluate("window.first = document.querySelector('.mc-card')")
    before = view.widget.comm.size_bytes
    view.widget.show(
        {**view.widget.state, "sequence": 0, "ranks": [card(rank, speed="14.1") for rank in range(8)]}
    )
    assert view.widget.comm.size_bytes - before < 16 * 1024
    view.flush()
    view.page.wait_for_function("document.querySelector('.mc-speed').textContent === '14.1 tok/s'")
    assert view.page.evaluate("window.first === document.querySelector('.mc-card')")


def test_the_picture_says_the_same_without_a_script(open_widget, page, looks):
    html = make().html()
    page.set_content(html)
    for text in ("rank", "mini1", "311 MiB", "lost", "its process 41208 ended"):
        assert text in page.inner_text("body")
    assert "<script" not in html
    assert [text for ratio, text in page.evaluate(looks.CONTRASTS) if ratio < 4.5] == []
