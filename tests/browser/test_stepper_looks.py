"""How the stepper looks: themes, contrast, narrow places, what a screen reader hears."""

import pytest

pytestmark = pytest.mark.browser

NAMES = [
    "start",
    "mid_prefill",
    "decode",
    "finished",
    "failed",
    "one_rank",
    "four_ranks",
    "eighty_layers",
    "crowded",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_text_has_contrast_in_both_themes_and_nothing_overflows_a_narrow_place(
    looks, open_view, jupyterlab, shoot, name
):
    view = open_view(name)
    view.page.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    for theme in ("light", "dark"):
        jupyterlab(theme)
        view.page.wait_for_timeout(100)
        shoot(f"stepper-{name}-{theme}")

        measured = view.page.evaluate(looks.CONTRASTS)

        assert len(measured) > 30
        assert [text for ratio, text in measured if ratio < 4.5] == [], theme

    for width in (700, 480):
        view.page.set_viewport_size({"width": width, "height": 900})
        view.page.wait_for_timeout(50)
        shoot(f"stepper-{name}-{width}")

        assert view.page.evaluate(looks.OVERFLOWING) == [], width
        assert view.page.evaluate(looks.CLIPPED) == [], width


def test_faint_text_would_be_noticed(looks, open_view, jupyterlab):
    view = open_view("mid_prefill")
    jupyterlab("light")
    view.page.evaluate("document.querySelector('.mv-note').style.color = '#999'")

    assert [text for ratio, text in view.page.evaluate(looks.CONTRASTS) if ratio < 4.5] == [
        "mv-note: rank 1 · Attention › RoPE · queries before rotation"
    ]


def test_an_overflow_would_be_noticed(looks, open_view):
    view = open_view("mid_prefill")
    view.page.set_viewport_size({"width": 700, "height": 900})
    view.page.evaluate("document.querySelector('.mv-sentence').style.width = '900px'")

    assert view.page.evaluate(looks.OVERFLOWING) != []


def colours(view) -> tuple[str, str]:
    return tuple(
        view.page.evaluate(
            "() => [getComputedStyle(document.querySelector('.mlxnb-stepper')).backgroundColor,"
            " getComputedStyle(document.querySelector('.ms-cell.done')).backgroundColor]"
        )
    )


LIGHT, DARK = "rgb(47, 111, 219)", "rgb(110, 168, 254)"


def test_jupyterlab_says_which_theme_whatever_the_system_prefers(open_view, jupyterlab):
    view = open_view("mid_prefill")
    jupyterlab("dark")
    assert view.page.evaluate("matchMedia('(prefers-color-scheme: light)').matches")
    assert colours(view) == ("rgb(17, 17, 17)", DARK)

    view.page.emulate_media(color_scheme="dark")
    jupyterlab("light")
    assert colours(view) == ("rgb(255, 255, 255)", LIGHT)


def test_elsewhere_vs_codes_class_and_then_the_system_decides(open_view):
    view = open_view("mid_prefill")
    assert colours(view)[1] == LIGHT

    view.page.evaluate("document.body.className = 'vscode-dark'")
    assert colours(view)[1] == DARK

    view.page.evaluate("document.body.className = ''")
    view.page.emulate_media(color_scheme="dark")
    assert colours(view) == ("rgb(17, 20, 24)", DARK)


def test_what_a_screen_reader_hears(open_view):
    from playwright.sync_api import expect

    view = open_view("mid_prefill")

    expect(view.page.locator("body")).to_match_aria_snapshot(
        """
        - 'group "Stepper: smollm2"':
          - text: smollm2 prefill 0:37 · rank 1 stopped “What is the capital of France?”
          - toolbar "Strides":
            - button "Into"
            - button "Over"
            - button "Out"
            - button "Layer"
            - button "Rank"
            - button "Token"
            - button "Back"
            - button "Run"
            - button "Restart"
            - button "Close"
          - group "Tokens":
            - button "… 23 more"
          - list "Ranks":
            - listitem:
              - text: rank 0 mini1 embed, layers 0–14
              - img "embedding done; layers 0–14 done, KV written"
            - 'listitem "From rank 0 to rank 1: [1, 37, 576] float32 · 83 KiB · 0.2 ms"'
            - listitem:
              - text: rank 1 mini2 layers 15–29, norm, head
              - img "layer 15 current, KV pending; layers 16–29 pending, KV pending; head pending"
          - heading "layers.15.self_attn.rope#1.input" [level=3]
          - table:
            - rowgroup:
              - row "x [B 1, H 9, L 37, 64] float32 83 KiB"
              - row "offset 0"
          - table
          - figure:
            - img "333 rows by 64 columns, pooled by extreme value; blue is negative, orange positive"
          - heading "Attention.__call__ llama.py" [level=3]
          - group "Source lines of Attention.__call__"
          - status: Rank 1 is about to rotate the queries of layer 15. Rank 0 waits.
          - group: Module tree
          - group: KV cache
          - group: Breakpoints (3)
        """
    )
    keys = view.page.locator("[aria-keyshortcuts]:visible")
    assert [each.get_attribute("aria-keyshortcuts") for each in keys.all()] == list("snrlktbc")
