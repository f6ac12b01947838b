"""What the stepper's view shows, as plain data: made in the kernel, drawn in the browser.

The view reads one JSON object and one small image; it computes nothing about the model. The same
object becomes the static picture that stays in a saved notebook.
"""

from typing import NotRequired, TypedDict


class TokenCell(TypedDict):
    """One token of the strip; `template` tokens come from the chat template.

    `text` has spaces as ``·`` and line ends as ``↵``. A cell with `more` stands for that many tokens
    that are not sent at all, so that a long prompt does not travel with every stop.
    """

    id: int
    text: str
    template: bool
    in_pass: bool
    generated: bool
    more: NotRequired[int]


class LayerBreaks(TypedDict, total=False):
    """`breakpoint` is the number of one at the layer's own entry or exit, 0 for none; `within`: there is one inside."""

    breakpoint: int
    within: bool


class LayerCell(LayerBreaks):
    """One layer in a lane: `state` is done, current or pending; `kv` is written, pending or none."""

    layer: int
    state: str
    kv: str


class Lane(TypedDict):
    """One rank. `status` is stopped, waits, running, finished, failed, closed or ended; `note` follows it: ``37 written``.

    `embed` and `head` are None on a rank without one, else done, current or pending as a layer's state.
    """

    rank: int
    host: str
    holds: str
    status: str
    note: str
    embed: str | None
    head: str | None
    layers: list[LayerCell]


class Wire(TypedDict):
    """Between lanes `source` and `source + 1`; `text` is empty until something has crossed in this pass.

    `state` is idle, sending (it has left, and has not arrived) or crossed.
    """

    source: int
    text: str
    state: str


class ArgumentRow(TypedDict):
    """An array in columns; for anything else `shape` has a short repr, and the other two are empty."""

    name: str
    shape: str
    dtype: str
    size: str


class NumberCell(TypedDict):
    """One of the five: min, mean, rms, max, NaN. A NaN or Inf other than ``0`` is drawn as an alarm."""

    name: str
    value: str


class SourceLine(TypedDict):
    number: int
    text: str
    current: bool


class SourcePane(TypedDict):
    """Some lines of the model's own file; `title` is the function: ``Attention.__call__``."""

    title: str
    file: str
    breadcrumb: list[str]
    lines: list[SourceLine]


class ModuleRow(TypedDict):
    """One row of the folded module tree: a module, or the layers `first` to `last` that are not unfolded.

    `path` is printed as it is, indented by `depth`; `state` is done, current or pending. `shape` is what the
    module has returned in this pass, empty before. `site` is where a breakpoint stops before it, and
    `breakpoint` the number of one at its entry or exit.
    """

    path: str
    class_name: str
    depth: int
    state: str
    shape: NotRequired[str]
    site: NotRequired[str]
    breakpoint: NotRequired[int]
    first: NotRequired[int]
    last: NotRequired[int]


class KVRow(TypedDict):
    """One row of the folded KV table: consecutive layers of a rank that read the same."""

    rank: int
    layers: str
    class_name: str
    offset: str
    state: str


class BreakRow(TypedDict):
    """One row of the folded list of breakpoints."""

    number: int
    site: str
    condition: str
    hits: int
    enabled: bool


class StepperState(TypedDict):
    """The whole first screen, and what is folded below it.

    `status` is ready, running, stopped, finished, failed, closed (by the user) or ended (with its
    cluster). `sequence` grows with every state:
    a reply with a lower number than one already drawn is dropped; 0 asks the view to number it on
    arrival. `site` has the path, `suffix` the ``.input`` that is printed fainter. `preview_label`
    describes the preview image for a screen reader, `preview_limit` is the value where its colours
    end (``4.38``; what the preview itself says goes first), `preview_note` what is to be known of them. `text` replaces the plain text that `widgets.stepper_static` composes; `error` is
    what went wrong, shown in a pane under everything else.
    """

    sequence: int
    model: str
    prompt: str
    status: str
    where: str
    tokens: list[TokenCell]
    pass_text: str
    lanes: list[Lane]
    wires: list[Wire]
    site: str
    suffix: str
    site_note: str
    arguments: list[ArgumentRow]
    numbers: list[NumberCell]
    preview_label: str
    preview_limit: NotRequired[str]
    preview_note: NotRequired[str]
    source: SourcePane | None
    sentence: str
    modules: list[ModuleRow]
    kv: list[KVRow]
    breakpoints: list[BreakRow]
    text: str
    error: str


def empty_state() -> StepperState:
    """A state that shows nothing yet: the base to fill in."""
    return StepperState(
        sequence=0,
        model="",
        prompt="",
        status="ready",
        where="",
        tokens=[],
        pass_text="",
        lanes=[],
        wires=[],
        site="",
        suffix="",
        site_note="",
        arguments=[],
        numbers=[],
        preview_label="",
        preview_limit="",
        preview_note="",
        source=None,
        sentence="",
        modules=[],
        kv=[],
        breakpoints=[],
        text="",
        error="",
    )
