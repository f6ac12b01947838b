"""Breakpoints in the stepper's view: set, removed and passed over by clicks, typed, and marked where they stand."""

import pytest

pytestmark = pytest.mark.browser


@pytest.fixture
def view(open_view):
    return open_view("mid_prefill")


@pytest.fixture
def wishes(view):
    """What the page asks for, as the client hears it."""
    heard = []
    view.widget.on_ask(lambda what, details: heard.append((what, details)))
    return heard


def test_a_click_at_a_layer_sets_a_breakpoint_and_at_a_marked_one_removes_it(view, wishes):
    cells = view.root.locator(".ms-cell[data-layer]")

    cells.nth(7).click()
    cells.nth(3).click()
    view.settle()

    assert wishes == [("breakpoint", {"site": "layers.7.input"}), ("breakpoint", {"number": 1})]
    assert view.sent[0]["id"] != view.sent[1]["id"]


def test_a_layer_shows_whether_a_breakpoint_is_at_it_or_inside(view):
    marks = (
        "(nodes) => nodes.map((node) => [...node.classList].filter((name) => name.startsWith('brk')).join())"
    )

    assert view.root.locator(".ms-cell[data-layer]").evaluate_all(marks)[:5] == [
        "brk-in",
        "brk-in",
        "brk-in",
        "brk",
        "brk-in",
    ]


def test_the_module_tree_has_a_dot_for_each_module_and_keeps_the_focus(view, wishes):
    view.root.locator("summary", has_text="Module tree").click()
    view.button("Break at layers.15.self_attn.q_proj.input").focus()
    view.page.keyboard.press("Enter")
    view.settle()
    view.widget.show({**view.widget.state, "sequence": 0})
    view.flush()
    view.settle()
    view.page.keyboard.press("Space")
    view.button("Remove breakpoint 2 at layers.15.mlp.input").click()
    view.settle()

    site = {"site": "layers.15.self_attn.q_proj.input"}
    assert [details for _, details in wishes] == [site, site, {"number": 2}]


def test_a_site_is_typed_and_no_letter_of_it_makes_a_stride(view, wishes):
    view.root.locator("summary", has_text="Breakpoints (3)").click()
    view.page.get_by_label("Site of a new breakpoint").click()
    view.page.keyboard.type("layers.*.mlp.output if absmax > 100")
    view.page.keyboard.press("Enter")
    view.page.keyboard.type("logits")
    view.button("Add").click()
    view.button("Add").click()  # nothing is left to add
    view.settle()

    assert [details for _, details in wishes] == [
        {"site": "layers.*.mlp.output", "when": "absmax > 100"},
        {"site": "logits", "when": ""},
    ]
    assert {message["kind"] for message in view.sent} == {"ask"}


def test_one_in_the_list_is_passed_over_and_taken_up_again_and_removed(view, wishes):
    view.root.locator("summary", has_text="Breakpoints (3)").click()
    view.button("Breakpoint 1 on").click()
    view.button("Breakpoint 3 on").click()
    view.button("Remove breakpoint 2").click()
    view.settle()

    assert [details for _, details in wishes] == [
        {"number": 1, "enabled": False},
        {"number": 3, "enabled": True},
        {"number": 2},
    ]


def test_a_refused_breakpoint_shows_why(view):
    from mlx_nb.shared.errors import SiteError

    def refuse(_what, _details):
        raise SiteError("No site 'layers.77.input'.", "The layers are 0–29.")

    view.widget.on_ask(refuse)
    view.root.locator(".ms-cell[data-layer]").nth(5).click()
    view.settle()

    assert view.page.get_by_role("alert").inner_text() == "No site 'layers.77.input'. The layers are 0–29."
