"""What the stepper's view shows, as plain data: made in the kernel, drawn in the browser.

The view reads one JSON object and one small image; it computes nothing about the model. The same
object becomes the static picture that stays in a saved notebook.
"""

from typing import TypedDict


class TokenCell(TypedDict):
    """One token of the strip: `text` with spaces as ``·``; `template` tokens come from the chat template."""

    id: int
    text: str
    template: bool
    in_pass: bool
    generated: bool


class LayerCell(TypedDict):
    """One layer in a lane: `state` is done, current or pending; `kv` is written, pending or none."""

    layer: int
    state: str
    kv: str


class Lane(TypedDict):
    """One rank. `status` is stopped, waits, running, finished or failed; `note` follows it: ``37 written``."""

    rank: int
    host: str
    holds: str
    status: str
    note: str
    embed: str | None
    head: str | None
    layers: list[LayerCell]


class Wire(TypedDict):
    """Between lanes `source` and `source + 1`; `text` is empty until something has crossed in this pass."""

    source: int
    text: str
    state: str


class ArgumentRow(TypedDict):
    name: str
    shape: str
    dtype: str
    size: str


class NumberCell(TypedDict):
    name: str
    value: str


class SourceLine(TypedDict):
    number: int
    text: str
    current: bool


class SourcePane(TypedDict):
    title: str
    file: str
    breadcrumb: list[str]
    lines: list[SourceLine]


class ModuleRow(TypedDict):
    """One row of the folded module tree of the layer where the run stands."""

    path: str
    class_name: str
    depth: int
    state: str


class KVRow(TypedDict):
    """One row of the folded KV table: consecutive layers of a rank that read the same."""

    rank: int
    layers: str
    class_name: str
    offset: str
    state: str


class StepperState(TypedDict):
    """The whole first screen, and what is folded below it.

    `status` is ready, running, stopped, finished or failed. `sequence` grows with every state:
    a reply with a lower number than one already drawn is dropped. `site` has the path, `suffix` the
    ``.input`` that is printed fainter. `preview_label` describes the preview image for a screen reader.
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
    source: SourcePane | None
    sentence: str
    modules: list[ModuleRow]
    kv: list[KVRow]
    text: str
    error: str
