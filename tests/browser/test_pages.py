"""Plans, shapes and tokens: pages without a script, in light and dark, narrow, without style sheets."""

import subprocess
import sys

import pytest

from mlx_nb.shared.legal import LegalCuts
from mlx_nb.shared.model_sizes import SiteRow, SiteTable
from mlx_nb.shared.plan import Plan, Shard
from mlx_nb.shared.tokens import PromptTokens, Token
from mlx_nb.widgets.plan_page import plan_html
from mlx_nb.widgets.shapes_page import shapes_html
from mlx_nb.widgets.tokens_page import tokens_html

pytestmark = pytest.mark.browser

GIB = 2**30


def plan(refused: bool = False) -> Plan:
    cuts = LegalCuts(
        num_layers=28,
        legal=tuple(n for n in range(1, 28) if not (refused and n > 20)),
        refused={n: f"Layer {n} reads the K/V that layer 20 writes." for n in range(21, 28)}
        if refused
        else {},
    )
    common = {"num_layers": 28, "memory_bytes": 11 * GIB}
    return Plan(
        model="qwen3",
        shards=(
            Shard(rank=0, layers=range(16), host="mini1", weight_bytes=5 * GIB, kv_bytes=GIB, **common),
            Shard(
                rank=1, layers=range(16, 28), host="mini2", weight_bytes=4 * GIB, kv_bytes=GIB // 2, **common
            ),
        ),
        hidden_size=2048,
        dtype="bfloat16",
        reason="so that the fullest rank is as empty as can be",
        context=4096,
        notes=("a note that a reader should know of",),
        legal_cuts=cuts,
    )


def shapes(layers: int = 30) -> SiteTable:
    def row(site: str, shape: str = "[B, L, D 576]", parameters: int = 331776) -> SiteRow:
        return SiteRow(
            site=f"{site}.output", class_name="Linear", shape=shape, dtype="float32", calls=1,
            parameters=parameters, size_bytes=4 * parameters,
        )  # fmt: skip

    rows = [row("model.embed_tokens", parameters=28311552)]
    for layer in range(layers):
        odd = {"parameters": 5} if layer == 7 else {}
        rows += [
            row(f"model.layers.{layer}.self_attn.q_proj"),
            row(f"model.layers.{layer}.mlp.up_proj", **odd),
        ]
    return SiteTable("smollm2", [*rows, row("model.norm", parameters=576)])


TEXTS = ["<|im_start|>", "user", "\n", "What", " is", " a", " <b>bold</b>", " cut", "?", "<|im_end|>", "\n"]
TOKENS = PromptTokens(
    tokens=tuple(Token(id=n, text=text, template=n < 3 or n > 8) for n, text in enumerate(TEXTS))
)
PAGES = {
    "plan": plan_html(plan()),
    "plan-refused": plan_html(plan(refused=True)),
    "shapes": shapes_html(shapes()),
    "tokens": tokens_html(TOKENS, "smollm2"),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_is_legible_in_both_themes_and_overflows_nothing(page, looks, shoot, name, theme):
    page.emulate_media(color_scheme=theme)
    page.set_content(f"<body style='background:{'#fff' if theme == 'light' else '#111'}'>{PAGES[name]}")
    shoot(f"{name}-{theme}")
    assert [text for ratio, text in page.evaluate(looks.CONTRASTS) if ratio < 4.5] == []
    for width in (700, 480):
        page.set_viewport_size({"width": width, "height": 700})
        wide = [one for one in page.evaluate(looks.OVERFLOWING) if "mw-scroll" not in one]
        assert wide == []
        if theme == "light":
            shoot(f"{name}-{width}")


def test_a_plan_says_what_fills_each_rank_and_where_it_may_be_cut(page):
    page.set_content(PAGES["plan-refused"])
    rows = [
        [cell.inner_text() for cell in row.locator("th, td").all()] for row in page.locator("tbody tr").all()
    ]
    assert rows[0][:7] == ["0", "mini1", "embed, layers 0–15", "5.0 GiB", "1.0 GiB", "11.0 GiB", "59 %"]
    bar = page.locator(".mp-bar").first
    assert bar.get_attribute("aria-label") == "weights 5.0 GiB, kv 1.0 GiB, rest 512 MiB"
    parts = [part.bounding_box()["width"] for part in bar.locator("i").all()]
    assert parts[0] / parts[1] == pytest.approx(5, rel=0.05)
    assert page.locator(".mp-layer.cut").inner_text() == "16"
    assert page.locator(".mp-layer.refused").count() == 7
    assert "K/V that layer 20 writes" in page.locator(".mp-layer").nth(22).get_attribute("title")


def test_layers_that_are_alike_are_told_once_and_an_odd_one_stands_out(page):
    page.set_content(PAGES["shapes"])
    groups = [each.inner_text() for each in page.locator(".mw-group").all()]
    assert groups == ["layers 0–6, alike", "layer 7", "layers 8–29, alike", "behind the layers"]
    assert page.locator("tbody tr").count() == 2 + 3 * 3 + 1
    nothing = shapes()["*.rotary"]
    assert "No site matches" in shapes_html(nothing)


def test_tokens_show_their_text_and_what_the_template_added(page):
    page.set_content(PAGES["tokens"])
    tokens = page.locator(".mx-token")
    assert [one.locator("b").inner_text() for one in tokens.all()][3:8] == [
        "What",
        "·is",
        "·a",
        "·<b>bold</b>",
        "·cut",
    ]
    assert page.locator(".mx-token.template").count() == 5
    assert "1,000 more" in tokens_html(PromptTokens(tokens=tuple(Token(id=1, text="a") for _ in range(3000))))


def test_a_cell_that_ends_with_a_plan_is_a_page_and_a_plain_shell_prints() -> None:
    program = """
import sys
sys.path.insert(0, {here!r})
from IPython.core.interactiveshell import InteractiveShell
from mlx_nb.client.displays import install_displays, remove_displays
shell = InteractiveShell.instance()
import test_pages
before = shell.display_formatter.format(test_pages.TOKENS)[0]
shell.kernel = object()
install_displays(shell)
after = shell.display_formatter.format(test_pages.TOKENS)[0]
remove_displays(shell)
assert "text/html" not in before and "mlxnb-tokens" in after["text/html"], after
assert after["text/plain"] == repr(test_pages.TOKENS)
assert "text/html" not in shell.display_formatter.format(test_pages.TOKENS)[0]
"""
    here = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", program.format(here=here)], check=True, timeout=60)
