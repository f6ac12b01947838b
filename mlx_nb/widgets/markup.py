"""HTML without a template engine: every text is escaped unless it is `Markup` already."""

from html import escape

VOID = ("img", "br")
"""Elements without an end tag."""


class Markup(str):
    """Text that is HTML already; any other text is escaped by `tag`."""


def tag(name: str, *children: str | None, **attributes: str | int | None) -> Markup:
    """One element, from ``tag.class.class``.

    >>> tag("td.alarm", "a < b", title="x")
    '<td class="alarm" title="x">a &lt; b</td>'
    """
    element, *classes = name.split(".")
    if classes:
        attributes = {"class": " ".join(classes), **attributes}
    listed = "".join(
        f' {key.replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children if child)
    return Markup(f"<{element}{listed}>" + ("" if element in VOID else f"{inside}</{element}>"))


def style(css: str) -> Markup:
    """A style sheet as an element."""
    return Markup(f"<style>{css}</style>")
