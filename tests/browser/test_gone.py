"""What a view says when its kernel has ended: it is a picture then, and nothing in it pretends to be alive."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.browser

SAYS = "This is a picture now, for the view's kernel has ended. Run its cell again."


def open_kv(open_widget: Callable[..., Any]) -> Any:
    from mlx_nb.widgets.kv import KVView

    return open_widget(KVView({"model": "smollm2", "trim": {"most": 9, "why": ""}}))


def test_a_view_whose_kernel_is_restarted_says_so_and_sends_nothing(
    open_view: Callable[..., Any], page: Any
) -> None:
    stepper = open_view("mid_prefill")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Into", exact=True).click()
    before = len(stepper.sent)
    assert before  # the control: while it lives, it sends
    assert page.get_by_text(SAYS).count() == 0

    page.evaluate("fire('comm_live_update')")

    assert page.get_by_role("status").get_by_text(SAYS).count() == 1
    page.locator(".mlxnb-view").focus()
    page.keyboard.press("l")
    page.locator("[data-layer]").first.click()
    assert len(stepper.sent) == before
    assert page.locator(".mv-buttons[inert]").count() == 1


def test_a_message_that_cannot_be_sent_says_it_too(open_widget: Callable[..., Any], page: Any) -> None:
    open_kv(open_widget)
    page.evaluate("() => { window.model.send = () => { throw new Error('Cannot send'); }; }")
    assert page.get_by_text(SAYS).count() == 0

    page.locator(".mlxnb-view").get_by_role("button").last.click()

    page.get_by_text(SAYS).wait_for()
    assert page.locator(".mlxnb-view").get_attribute("aria-busy") == "false"
    assert "Cannot send" in page.problems.pop()  # the console has the reason


def test_a_view_that_is_taken_away_listens_no_more(open_widget: Callable[..., Any], page: Any) -> None:
    open_kv(open_widget)
    page.evaluate("window.cleanup()")
    assert page.evaluate("window.listeners()") == 0
