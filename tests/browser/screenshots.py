"""``python -m tests.browser.screenshots [FOLDER] [VIEW …]``: every view from a real run of smollm2, light and dark.

Writes ``FOLDER/VIEW-light.png`` and ``-dark.png`` (``notebooks/images`` if nothing is said), with ``--narrow``
``VIEW-700.png`` too. At that width as well every view is measured: whatever overflows, is cut off, is too faint or is
a word that no tooltip explains is printed, and ends the command with 1. A view that `%mlx_show` knows is in the list by
itself; `ABOUT` says what a view is about that needs to be told.
"""

import argparse
import base64
import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.displays import PAGES
from mlx_nb.client.live_view import close_views, live_views
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.show import VIEWS, show_view
from mlx_nb.widgets.png import palette_png
from tests.browser import looks
from tests.browser.bridge import OUTSIDE, Bridge
from tests.browser.conftest import theme_css
from tests.conftest import CHROMIUM

QUESTION = "What is the capital of France?"
SITE = "layers.20.resid_post"
ABOUT: dict[str, Callable[[Pipe], Any]] = {
    "kv": lambda pipe: stand_in_a_decode(),
    "tensor": lambda pipe: pipe.trace(QUESTION, sites=SITE, max_tokens=2)[SITE],
    "timeline": lambda pipe: pipe.generate(
        "Tell me about the sea. " * 40, max_tokens=6, prefill_step_size=32
    ),
    "diff": lambda pipe: spoiled(pipe),
}
ASKED = ("lens", "stats", "attention")
WISHES: dict[str, dict[str, Any]] = {
    "attention": {"layer": 16, "head": 0}
}  # a head that looks at the token before
PAGE: dict[str, Callable[[Pipe], Any]] = {
    "plan": lambda pipe: pipe.plan,
    "shapes": lambda pipe: pipe.sites(),
    "tokens": lambda pipe: pipe.tokens(QUESTION),
}
PRESSED = {"kv": ".mk-go"}
WIDTH, NARROW, SCALE = 920, 700, 1.5
DRESS = """([css, light]) => {
  document.head.append(Object.assign(document.createElement("style"), { textContent: css }));
  document.body.dataset.jpThemeLight = light;
}"""

PIXELS = """async (base64) => {
  const image = await createImageBitmap(await (await fetch(`data:image/png;base64,${base64}`)).blob());
  const pen = new OffscreenCanvas(image.width, image.height).getContext("2d");
  pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, image.width, image.height);
  let text = "";
  for (let at = 0; at < data.length; at += 30000) text += String.fromCharCode(...data.subarray(at, at + 30000));
  return { size: [image.height, image.width], pixels: btoa(text) };
}"""


def stand(pipe: Pipe) -> None:
    """The stepper as in its mock: rank 1 is about to rotate the queries of its first layer."""
    pipe.generate(QUESTION, max_tokens=8)
    dbg = pipe.debug(QUESTION, max_tokens=8)
    dbg.rank()  # by strides, as a reader would: the wire knows its value then
    dbg.until("layers.15.self_attn.rope.input")


def stand_in_a_decode() -> str:
    """The stepper goes on into the first decode step, so that its KV caches are part written, part pending."""
    assert current.dbg is not None
    current.dbg.token()
    current.dbg.until("layers.20.mlp.input")
    return ""


def spoiled(pipe: Pipe) -> Any:
    """A comparison that has something to show: a layer whose weights are in a wrong order."""
    right = pipe.trace(
        QUESTION,
        sites=["layers.*", "layers.*.input", "embed_tokens.output", "norm.output", "layers.3.**", "logits"],
    )
    with pipe.fault("gqa_order", layer=3):
        return pipe.diff(right, QUESTION)


def pages(pipe: Pipe, wanted: list[str]) -> Iterator[tuple[str, str]]:
    """Each view that is a page without a script."""
    for name, make in PAGE.items():
        if not wanted or name in wanted:
            thing = make(pipe)
            yield name, PAGES[type(thing)](thing) or ""


def views(
    pipe: Pipe, wanted: list[str], abouts: dict[str, Callable[[Pipe], Any]] = ABOUT
) -> Iterator[tuple[str, Any]]:
    """Each view that draws itself, by its name. One is open at a time."""
    stand(pipe)
    for name in [name for name in wanted or VIEWS if name not in PAGE]:
        about = abouts[name](pipe) if name in abouts else QUESTION if name in ASKED else ""
        with redirect_stdout(io.StringIO()):  # without a notebook, what is shown is printed
            show_view(pipe, name, about, **WISHES.get(name, {}))
        assert live_views, f"{name} opened no view"
        yield "stepper" if name == "step" else name, live_views[-1].view  # type: ignore[attr-defined]
        close_views()


@contextmanager
def opened(browser: Any, view: Any, theme: str, width: int, quiet_s: float = 0.6) -> Iterator[Bridge]:
    """A page with the view in it, dressed as JupyterLab; what `PRESSED` names has been clicked."""
    context = browser.new_context(viewport={"width": width, "height": 900}, device_scale_factor=SCALE)
    try:
        bridge = Bridge(context.new_page(), view).open(render=False)
        bridge.page.evaluate(DRESS, [theme_css(theme), "true" if theme == "light" else "false"])
        bridge.page.evaluate(OUTSIDE, "render")
        settle(bridge, quiet_s)
        if view.name in PRESSED:
            bridge.page.locator(PRESSED[view.name]).first.click()
            settle(bridge, quiet_s)
        yield bridge
    finally:
        context.close()


@contextmanager
def laid_out(browser: Any, html: str, theme: str, width: int) -> Iterator[Any]:
    """A page of HTML, dressed as JupyterLab."""
    context = browser.new_context(viewport={"width": width, "height": 900}, device_scale_factor=SCALE)
    try:
        page = context.new_page()
        page.set_content(
            f"<!doctype html><body style='margin:12px;background:var(--jp-layout-color0)'>{html}</body>"
        )
        page.evaluate(DRESS, [theme_css(theme), "true" if theme == "light" else "false"])
        yield page
    finally:
        context.close()


def settle(bridge: Bridge, quiet_s: float, limit_s: float = 20) -> None:
    """Until nothing has gone to and fro for a while."""
    begun = last = time.monotonic()
    while time.monotonic() - last < quiet_s and time.monotonic() - begun < limit_s:
        if bridge.outbox or bridge.root.first.get_attribute("aria-busy") == "true":
            last = time.monotonic()
        bridge.flush()
        bridge.page.wait_for_timeout(30)


def faults_of(page: Any) -> list[str]:
    """What is too faint, cut off, too wide, or not explained."""
    faint = [
        f"contrast {ratio}: {text[:80]}" for ratio, text in page.evaluate(looks.CONTRASTS) if ratio < 4.5
    ]
    cut = [f"cut off: {text[:80]}" for text in page.evaluate(looks.CLIPPED)]
    wide = [f"overflows: {node}" for node in page.evaluate(looks.OVERFLOWING)]
    return [*faint, *cut, *wide, *(f"no tooltip says: {word}" for word in page.evaluate(looks.UNEXPLAINED))]


def look(page: Any, file: Path | None, name: str, theme: str, width: int) -> int:
    """Take the picture, if a file is given; print what is wrong with it, and count it."""
    if file:
        file.write_bytes(in_few_colours(page.context.browser, page.locator(".mlxnb-view").first.screenshot()))
    found = faults_of(page)
    for fault in found:
        print(f"{name}, {theme}, {width} px: {fault}", flush=True)
    return len(found)


def in_few_colours(browser: Any, png: bytes) -> bytes:
    """The same picture in 256 colours: a fraction of the bytes, and nobody sees it."""
    page = browser.new_page()
    raw = page.evaluate(PIXELS, base64.b64encode(png).decode())
    page.close()
    pixels = np.frombuffer(
        base64.b64decode(raw["pixels"]), np.uint32
    )  # a colour is a number: sorted much faster
    numbers, places, counts = np.unique(pixels, return_inverse=True, return_counts=True)
    colours = numbers.view(np.uint8).reshape(-1, 4)
    nearest = np.zeros(len(colours), np.uint8)
    distance = np.full(len(colours), np.inf)
    palette, chosen = [], int(counts.argmax())
    for index in range(min(256, len(colours))):  # next, what is most seen and least like those chosen so far
        palette.append(colours[chosen])
        away = ((colours.astype(float) - colours[chosen]) ** 2).sum(axis=1)
        nearest[away < distance] = index
        distance = np.minimum(distance, away)
        chosen = int((distance * np.sqrt(counts)).argmax())
    return palette_png(nearest[places.ravel()].reshape(raw["size"]), np.array(palette))


def main(folder: Path, wanted: list[str], narrow: bool) -> int:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    found = 0
    with Cluster.start(ranks=2) as cluster, sync_playwright() as playwright:
        pipe = cluster.load("smollm2")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, shown in chain(views(pipe, wanted), pages(pipe, wanted)):
            for theme, width in (("light", WIDTH), ("dark", WIDTH), ("light", NARROW)):
                file = folder / f"{name}-{theme if width == WIDTH else width}.png"
                kept = file if width == WIDTH or narrow else None
                if isinstance(shown, str):
                    with laid_out(browser, shown, theme, width) as page:
                        found += look(page, kept, name, theme, width)
                else:
                    with opened(browser, shown, theme, width) as bridge:
                        found += look(bridge.page, kept, name, theme, width)
        browser.close()
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.browser.screenshots")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("notebooks/images"))
    parser.add_argument("views", nargs="*", help="only these")
    parser.add_argument("--narrow", action="store_true", help=f"keep pictures at {NARROW} px, too")
    said = parser.parse_args()
    sys.exit(main(said.folder, said.views, said.narrow))
