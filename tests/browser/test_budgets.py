"""Every view of a real run: what travels when it opens and with each step, that it asks nobody else, and what stays of it.

The budgets are those of a notebook over a slow link: three quarters of a MiB to open a view, 512 KiB for an answer,
64 KiB for a step that the page has not asked about.
"""

import gc
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.client.kv_view import LiveKV
from mlx_nb.client.live_view import close_views
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.show import VIEWS, show_stepper, show_view
from mlx_nb.shared.text import format_size
from mlx_nb.widgets.kv import KVView
from tests.browser import screenshots
from tests.browser.bridge import CSP, OUTSIDE, Bridge, PageComm

pytestmark = [pytest.mark.browser, pytest.mark.cluster]

KIB = 1024
A_STEP, AN_ANSWER, OPENING = 64 * KIB, 512 * KIB, 768 * KIB
QUESTION = "What is the capital of France?"
SAID = {
    "stepper": ["rank 0", "layers 15–29", "83 KiB", "layers.15.self_attn", "rope#1", "queries = self.rope", "written"],
    "kv": ["KVCache", "21–29", "1 pending", "256", "norms of the keys of layer 0"],
    "cluster": ["rank", "layers 15–29", "weights", "311 MiB"],
    "timeline": ["rank 0", "rank 1", "prefill", "decode", "busy"],
    "lens": ["rank 1", "embed", "France", "29"],
    "tensor": ["layers.20", "576", "float32", "rms"],
    "stats": ["rms", "rank 1", "29"],
    "attention": ["layer 16", "to the token before it"],
    "diff": ["layers.3.output", "differs", "in free runs"],
    "plan": ["layers 15–29", "311 MiB"],
    "shapes": ["self_attn.", "q_proj", "331,776"],
    "tokens": ["·France", "4649"],
}  # fmt: skip
"""What each view has to say without a script."""


def small_diff(pipe: Pipe) -> Any:
    right = pipe.trace(QUESTION, sites=["layers.*", "layers.*.input"])
    with pipe.fault("gqa_order", layer=3):
        return pipe.diff(right, QUESTION, forced=False)


ABOUT = {
    **screenshots.ABOUT,
    "timeline": lambda pipe: pipe.generate(QUESTION, max_tokens=3),
    "diff": small_diff,
}


class Bare(HTMLParser):
    """Drops scripts, style sheets, classes, inline styles, SVG, and pictures: about what a strict page leaves."""

    TAGS = frozenset(
        [
            "a",
            "b",
            "blockquote",
            "br",
            "caption",
            "code",
            "dd",
            "details",
            "div",
            "dl",
            "dt",
            "em",
            "figure",
            "figcaption",
            "h1",
            "h2",
            "h3",
            "hr",
            "i",
            "kbd",
            "li",
            "ol",
            "p",
            "pre",
            "s",
            "small",
            "span",
            "strong",
            "sub",
            "summary",
            "sup",
            "table",
            "tbody",
            "td",
            "tfoot",
            "th",
            "thead",
            "tr",
            "tt",
            "ul",
        ]
    )

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self._inside = "", 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside += tag in ("style", "script")
        if tag in self.TAGS and not self._inside:
            spans = "".join(f' {name}="{value}"' for name, value in attrs if name in ("rowspan", "colspan"))
            self.html += f"<{tag}{spans}>"

    def handle_endtag(self, tag: str) -> None:
        if tag in self.TAGS and not self._inside:
            self.html += f"</{tag}>"
        self._inside -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.html += data.replace("&", "&amp;").replace("<", "&lt;")


@pytest.fixture(scope="module")
def pipe(cluster2: Any) -> Iterator[Pipe]:
    found = cluster2.load("smollm2")
    yield found
    found.unload()


@dataclass
class Seen:
    """What a view did when it was opened.

    Attributes:
        opening: Bytes sent by then.
        answer: Bytes of the largest answer.
        problems: What the page logged, fetched, or was refused.
        html: The picture that it leaves.
    """

    opening: int
    answer: int
    problems: list[str]
    html: str


@pytest.fixture(scope="module")
def walk(chromium: Any, pipe: Pipe) -> dict[str, Seen]:
    """Every view, opened in a page."""
    found = {}
    try:
        for name, view in screenshots.views(pipe, [], ABOUT):
            with screenshots.opened(chromium, view, "light", 920, quiet_s=0.2) as bridge:
                assert bridge.root.count() == 1
                if name == "tensor":  # which asks for its picture once it knows its size
                    bridge.wait_for(
                        lambda messages=view.comm.messages: "custom" in dict(messages), timeout_s=20
                    )
                answers = [size for method, size in view.comm.messages if method == "custom"]
                html = view.picture()["text/html"]
                found[name] = Seen(view.comm.size_bytes, max(answers, default=0), bridge.problems, html)
        found |= {name: Seen(len(html), 0, [], html) for name, html in screenshots.pages(pipe, [])}
    finally:
        close_views()
        if screenshots.current.dbg is not None:
            screenshots.current.dbg.close()
    return found


def test_every_view_was_opened_and_none_sent_more_than_its_budget(walk: dict[str, Seen]) -> None:
    for name, seen in walk.items():
        print(f"{name}: {format_size(seen.opening)}, answers up to {format_size(seen.answer)}")

    assert set(walk) == {"stepper" if name == "step" else name for name in VIEWS} == set(SAID)
    assert min(seen.opening for seen in walk.values()) > KIB  # the control: something is counted
    assert {name: seen.opening for name, seen in walk.items() if seen.opening > OPENING} == {}
    assert {name: seen.answer for name, seen in walk.items() if seen.answer > AN_ANSWER} == {}
    assert max(seen.answer for seen in walk.values()) > KIB  # and answers are, too


def test_no_view_asks_the_network_or_needs_what_a_strict_policy_refuses(walk: dict[str, Seen]) -> None:
    assert "unsafe-eval" not in CSP
    assert "connect-src" not in CSP  # so that default-src rules it, which is 'none'
    assert {name: seen.problems for name, seen in walk.items() if seen.problems} == {}


SNEAKY = """export default { render({ el }) {
  el.append(Object.assign(document.createElement("div"), { className: "mlxnb-view" }));
  fetch("http://elsewhere.test/data").catch(() => {});
  el.append(Object.assign(new Image(), { src: "http://elsewhere.test/picture.png" }));
  try { eval("1 + 1"); } catch {}
} };"""


@pytest.mark.parametrize(
    ("policy", "caught"),
    [
        (CSP, ["elsewhere.test/data", "elsewhere.test/picture.png", "refuses eval"]),
        (
            "img-src *",
            ["request to http://elsewhere.test/data", "request to http://elsewhere.test/picture.png"],
        ),
    ],
)
def test_a_view_that_did_so_would_be_caught(chromium: Any, policy: str, caught: list[str]) -> None:
    view = KVView()
    view._esm = SNEAKY
    context = chromium.new_context()
    try:
        bridge = Bridge(context.new_page(), view, csp=policy).open(render=False)
        assert bridge.problems == []
        bridge.page.evaluate(OUTSIDE, "render")
        bridge.page.wait_for_timeout(300)
        assert [one for one in caught if not any(one in problem for problem in bridge.problems)] == [], (
            bridge.problems
        )
    finally:
        context.close()


def test_every_frozen_view_is_readable_without_scripts_styles_and_pictures(
    chromium: Any, walk: dict[str, Seen]
) -> None:
    kept = os.environ.get("MLX_NB_SCREENSHOTS")
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 920, "height": 900})
    page = context.new_page()
    strangers: list[str] = []
    page.on("request", lambda request: strangers.append(request.url))
    try:
        for name, html in ((name, seen.html) for name, seen in walk.items()):
            assert not re.search(r"<script|<iframe|<link|\son\w+=|javascript:", html), name
            for kind, shown in (("frozen", html), ("bare", Bare(html).html)):
                page.set_content(f"<!doctype html><body>{shown}</body>")
                text = page.locator("body").inner_text()
                assert [word for word in SAID[name] if word not in text] == [], (name, kind)
                if kept:
                    page.screenshot(path=Path(kept) / f"{name}-{kind}.png", full_page=True)
    finally:
        context.close()
    assert [url for url in strangers if not url.startswith(("data:", "about:"))] == []


def test_what_stands_for_a_strict_page_takes_away_what_it_should() -> None:
    bare = Bare(
        '<style>p{display:none}</style><p class="a" style="x" onclick="y">a &lt; b</p><svg><text>kept</text></svg><script>gone</script>'
    )

    assert bare.html == "<p>a &lt; b</p>kept"


def test_a_step_sends_little_to_each_open_view(pipe: Pipe) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 60  # 600 tokens: a strip that folds
    strides = [*["into"] * 8, "layer", "layer", "over", "rank", "into", "token", "back"]
    try:
        with pipe.debug(prompt, max_tokens=4) as dbg:
            dbg.token()
            kv = LiveKV(pipe)
            kv._choose({"layer": 0})  # its norms are sent with every step from now on
            views = {
                "stepper": show_stepper(dbg).view,
                "kv": kv.view,
                "cluster": show_view(pipe, "cluster").view,
            }
            for view in views.values():
                view.comm = PageComm(outbox=deque(), comm_id=view.comm.comm_id)
            costs: dict[str, list[int]] = {name: [] for name in views}
            for stride in strides:
                before = {name: view.comm.size_bytes for name, view in views.items()}
                getattr(dbg, stride)()
                time.sleep(0.2)  # two of these follow at their own pace
                for name, view in views.items():
                    costs[name].append(view.comm.size_bytes - before[name])
            said = views["stepper"].comm.messages
            count, begun = len(said), time.monotonic()
            dbg.run()
            rate = (len(said) - count) / (time.monotonic() - begun)
    finally:
        close_views()
    for name, each in costs.items():
        print(
            f"a step, {name}: {format_size(sum(each) // len(each))} on average, {format_size(max(each))} at most"
        )
    print(f"while it runs: {rate:.1f} updates a second, {format_size(max(size for _, size in said))} at most")

    assert min(costs["stepper"]) > KIB  # the control: every step is seen
    assert max(costs["kv"]) > KIB
    assert {name: max(each) for name, each in costs.items() if max(each) > A_STEP} == {}
    assert max(size for _, size in said) <= A_STEP
    assert rate <= 12  # ten, the first and the last


@pytest.mark.parametrize(
    "steps", [60, pytest.param(2000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])]
)
def test_a_long_session_leaves_nothing_behind(chromium: Any, pipe: Pipe, steps: int) -> None:
    import ipywidgets.widgets.widget as widget_module

    told = []
    try:
        with pipe.debug(QUESTION, max_tokens=200) as dbg:
            live = show_stepper(dbg)
            with screenshots.opened(chromium, live.view, "light", 920) as bridge:
                page = bridge.page
                cdp = page.context.new_cdp_session(page)

                def go(count: int) -> None:
                    for _ in range(count):
                        if dbg.done:
                            dbg.restart()
                            bridge.flush()
                        before = live.view.state["sequence"]
                        page.keyboard.press("s")
                        bridge.wait_for(lambda then=before: is_past(then))
                        bridge.flush()

                def is_past(then: int) -> bool:
                    return live.view.state["sequence"] > then and not live.view.busy

                def measure() -> dict[str, float]:
                    gc.collect()
                    cdp.send("HeapProfiler.collectGarbage")
                    return {
                        "kernel, MiB": resident_mib(),
                        "page, MiB": cdp.send("Runtime.getHeapUsage")["usedSize"] / 2**20,
                        "nodes": page.evaluate("document.querySelectorAll('*').length"),
                        "listeners": page.evaluate("listeners()"),
                        "widgets": len(widget_module._instances),
                        "waiting": len(bridge.outbox),
                    }

                bridge.root.focus()
                go(20)
                before, size, begun = measure(), live.view.comm.size_bytes, time.monotonic()
                go(steps)
                took = time.monotonic() - begun
                after, sent = measure(), live.view.comm.size_bytes - size
                told.append(f"{steps} steps in {took:.0f} s, {format_size(sent // steps)} a step")
                told += [f"{name}: {before[name]:.1f} → {after[name]:.1f}" for name in before]
    finally:
        close_views()
    print("\n".join(told))

    assert KIB < sent / steps <= A_STEP
    assert after["kernel, MiB"] - before["kernel, MiB"] <= 24
    assert after["page, MiB"] - before["page, MiB"] <= 4
    assert after["nodes"] <= before["nodes"] + 200  # another line of code, another number of rows
    assert {name: after[name] for name in ("listeners", "widgets", "waiting")} == {
        name: before[name] for name in ("listeners", "widgets", "waiting")
    }


def resident_mib() -> float:
    """What this process, the kernel's stand-in, holds in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
