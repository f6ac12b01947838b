"""The faults that can be put into a pipe on purpose: what each is called, what it does, and what its number means."""

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.text import format_table


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault.

    Attributes:
        name: As it is typed.
        group: What it strikes.
        what: What it does, as the rest of "it …".
        by: Its number unless another is given; None for a fault without one.
        everywhere: Whether it strikes all layers of its rank unless one is named; else one of them.
    """

    name: str
    group: str
    what: str
    by: float | None = None
    everywhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSpec:
    """One fault, as it is sent to its rank.

    Attributes:
        number: Names it on the rank.
        name: Its kind.
        layer: The layer; None lets the rank take all, or the first that has what the fault strikes.
        by: Its number.
    """

    number: int
    name: str
    layer: int | None
    by: float | None


_KINDS = (
    FaultKind("kv_offset", "KV cache", "moves the offset by N once the first tokens are in", -1, True),
    FaultKind("kv_stale", "KV cache", "leaves old values in the slots that a pass should write"),
    FaultKind("kv_missing", "KV cache", "calls the layer without its KV cache"),
    FaultKind("ring_logical", "KV cache", "reads a ring that has turned only up to where it writes next"),
    FaultKind("layer_skipped", "layers", "returns what the layer was given"),
    FaultKind("layer_repeated", "layers", "runs the layer twice in a pass"),
    FaultKind("layer_loaded_twice", "layers", "gives the layer the weights of its neighbour"),
    FaultKind("residual_lost", "layers", "leaves the residual stream out of what the layer returns"),
    FaultKind("stale_input", "layers", "computes with the hidden state of the pass before"),
    FaultKind("tuple_dropped", "layers", "loses the last array of the tuple that a layer returns"),
    FaultKind("nan", "numbers", "turns one value that the layer returns into NaN"),
    FaultKind("overflow_float16", "numbers", "lets the MLP's result, times N, pass through float16", 1e8),
    FaultKind("half_precision", "numbers", "rounds what the MLP returns to bfloat16"),
    FaultKind("transposed_weight", "weights", "transposes the attention's output projection"),
    FaultKind(
        "swapped_qk_rows", "weights", "orders the rows of the query projection for the other kind of RoPE"
    ),
    FaultKind("gqa_order", "weights", "turns the order of the KV heads round"),
    FaultKind("swapped_gate_up", "weights", "exchanges the MLP's gate and up projection"),
    FaultKind("cut_weight", "weights", "leaves the second half of the down projection zero"),
    FaultKind("random_weight", "weights", "leaves the down projection as it was drawn, as if no file had it"),
    FaultKind("lost_head", "weights", "zeroes what the first attention head adds"),
    FaultKind("expert_order", "weights", "turns the order of the experts round in the router"),
    FaultKind("norm_epsilon", "settings", "sets the epsilon of the layer's first norm to N", 0.01),
    FaultKind("norm_offset", "weights", "adds N to the weight of the layer's first norm", 1.0),
    FaultKind("rope_base", "settings", "multiplies the base of RoPE by N", 2.0),
    FaultKind("rope_offset", "settings", "rotates as if the tokens stood N places further", 1),
    FaultKind("rope_traditional", "settings", "pairs the dimensions of RoPE the other way"),
    FaultKind("rope_scale", "settings", "multiplies the scale of RoPE by N", 0.5),
    FaultKind("attention_scale", "settings", "multiplies the scale of the scores by N", 2.0),
    FaultKind("mask_off_by_one", "settings", "lets every token of a chunk see N more", 1),
    FaultKind("embed_scale", "ends", "multiplies the embeddings by N (none: by 1/√D)"),
    FaultKind("token_shift", "ends", "embeds the token before"),
    FaultKind("soft_cap", "ends", "multiplies the soft cap of the logits by N", 0.25),
    FaultKind("wrong_head", "ends", "shifts the rows of the head, tied or not, by N tokens", 1),
    FaultKind("flat_logits", "ends", "zeroes the weight of the last norm"),
)

KINDS = {kind.name: kind for kind in _KINDS}


def kind_of(name: str) -> FaultKind:
    """A kind by its name.

    Raises:
        OptionError: There is none.
    """
    if name not in KINDS:
        raise OptionError(f"There is no fault '{name}'.", "Type: mlx_nb.faults()")
    return KINDS[name]


class FaultKinds:
    """Every fault there is: a sequence that prints as a table."""

    def __init__(self) -> None:
        self._kinds = _KINDS

    def __iter__(self) -> Iterator[FaultKind]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, name: str) -> FaultKind:
        return kind_of(name)

    def __repr__(self) -> str:
        rows = [["fault", "by", "strikes", "it …"]]
        rows += [[k.name, "" if k.by is None else f"{k.by:g}", k.group, k.what] for k in self]
        return f"{len(self)} faults\n{format_table(rows)}\n Put one in: with pipe.fault('kv_offset', rank=1, by=-1): pipe.check()"


def faults() -> FaultKinds:
    """The faults that `Pipe.fault` puts in."""
    return FaultKinds()
