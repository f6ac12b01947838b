"""A page that shows one real widget: its Python class here, its module and style sheet in the browser.

The wire between them is the comm that ipywidgets writes to, so that what the page gets is what a
notebook would get: JSON with the binary traits split off.
"""

import base64
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ipywidgets
from comm.base_comm import BaseComm
from playwright.sync_api import Locator, Page

CSP = "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data:"

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>one view</title>
<style>body{margin:0;padding:12px;background:var(--jp-layout-color0)}</style><body><div id="root"></div>
<script>
const events = new Map();
const data = {};
window.sent = [];
window.model = {
  get: (name) => data[name],
  send: (content) => { window.sent.push(content); window.toPython?.(content); },
  on: (event, callback) => events.set(event, (events.get(event) || new Set()).add(callback)),
  off: (event, callback) => events.get(event)?.delete(callback),
};
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const fire = (event, ...values) => events.get(event)?.forEach((callback) => callback(...values));
window.listeners = () => [...events.values()].reduce((n, set) => n + set.size, 0);
window.fromPython = ({ method, state, buffers, content }) => {
  if (method === "custom") return fire("msg:custom", content, (window.received = Object.values(buffers).map(bytes)));
  const changed = { ...state, ...Object.fromEntries(Object.entries(buffers).map(([k, v]) => [k, bytes(v)])) };
  Object.assign(data, changed);
  for (const name of Object.keys(changed)) fire(`change:${name}`);
};
addEventListener("securitypolicyviolation", ({ effectiveDirective, blockedURI }) =>
  console.error(`${effectiveDirective} refuses ${blockedURI}`)); // an eval that is caught says nothing else
window.load = async (code, css) => {
  document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
  window.view = (await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })))).default;
};
window.render = () => {
  window.cleanup = window.view.render({ model: window.model, el: document.getElementById("root") });
};
</script></body></html>"""


# What runs inside of Playwright's call may use eval whatever the policy says: so the page calls, later.
OUTSIDE = """(said) => new Promise((done, fail) => setTimeout(() => {
  const [name, message] = [said].flat();
  try { done(void window[name](message)); } catch (error) { fail(error); }
}))"""


def watch(
    page: Page, own: tuple[str, ...] = ("http://one-view.test/", "blob:", "data:", "about:")
) -> list[str]:
    """What a page logs as a problem, what its policy refuses, and what it fetches from anywhere: filled as it happens."""
    problems: list[str] = []
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(own) else problems.append(f"request to {r.url}"))
    return problems


class PageComm(BaseComm):
    """Keeps what the widget sends, in order, until `Bridge.flush` gives it to the page.

    Attributes:
        size_bytes: JSON and buffers that were sent so far.
        messages: Method and size of each message: ``update`` changes traits, ``custom`` answers.
    """

    def __init__(self, *args: Any, outbox: deque[dict[str, Any]], **kwargs: Any) -> None:
        self.outbox = outbox
        self.messages: list[tuple[str, int]] = []
        super().__init__(*args, **kwargs)

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.messages)

    def publish_msg(
        self, msg_type: str, data: Any = None, *_: Any, buffers: Any = None, **_rest: Any
    ) -> None:
        if msg_type != "comm_msg" or data["method"] not in ("update", "custom"):
            return
        paths = [path[0] for path in data.get("buffer_paths", [])]
        names = paths if data["method"] == "update" else [str(i) for i in range(len(buffers or []))]
        encoded = {
            name: base64.b64encode(bytes(b)).decode() for name, b in zip(names, buffers or [], strict=True)
        }
        size = len(json.dumps(data, default=str)) + sum(len(bytes(b)) for b in buffers or [])
        self.messages.append((data["method"], size))
        self.outbox.append({**data, "buffers": encoded})


class Bridge:
    """One widget and its page.

    Attributes:
        page: Playwright's page.
        sent: What the browser has sent to Python, in order.
        problems: What `watch` has seen.
    """

    URL = "http://one-view.test/"

    def __init__(self, page: Page, widget: ipywidgets.DOMWidget, *, csp: str = CSP) -> None:
        self.page, self.widget, self.sent = page, widget, []
        self.problems: list[str] = page.problems if hasattr(page, "problems") else watch(page)
        self.outbox: deque[dict[str, Any]] = deque()
        self._csp = csp

    def open(self, *, render: bool = True) -> "Bridge":
        headers = {"content-type": "text/html", "content-security-policy": self._csp}
        self.page.route(self.URL, lambda route: route.fulfill(body=PAGE, headers=headers))
        self.page.expose_function("toPython", self._to_python)
        self.page.goto(self.URL)
        self.widget.comm = PageComm(outbox=self.outbox, comm_id=self.widget.comm.comm_id)
        self.page.evaluate("([code, css]) => load(code, css)", [str(self.widget._esm), str(self.widget._css)])
        self.widget.send_state()
        self.flush()
        if render:
            self.page.evaluate(OUTSIDE, "render")
        return self

    def _to_python(self, content: dict[str, Any]) -> None:
        self.sent.append(content)
        self.widget._handle_msg(
            {"content": {"data": {"method": "custom", "content": content}}, "buffers": []}
        )

    def flush(self) -> None:
        while self.outbox:
            self.page.evaluate(OUTSIDE, ["fromPython", self.outbox.popleft()])

    def wait_for(self, condition: Callable[[], Any], *, timeout_s: float = 5.0) -> None:
        """Let both sides run until `condition()`."""
        ends = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > ends:
                raise AssertionError(f"Not within {timeout_s} s: {condition}")
            self.page.wait_for_timeout(10)
            self.flush()

    def settle(self) -> None:
        """Until what was pressed has reached Python, and the reply the page."""
        self.wait_for(lambda: len(self.sent) == self.page.evaluate("sent.length"))
        self.flush()
        self.page.evaluate("() => new Promise(requestAnimationFrame)")

    @property
    def root(self) -> Locator:
        return self.page.locator(".mlxnb-view")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)
