"""The one sentence at the foot of the stepper: what is about to happen, in words.

Names of submodules are conventions, not rules: one that is not known here is called by its name.
"""

from typing import TYPE_CHECKING

from mlx_nb.shared.attention import KINDS, PATTERN, SCORES, K, Q, V, Z
from mlx_nb.shared.position import INPUT, OUTPUT, RECV, SEND, Position

if TYPE_CHECKING:
    from mlx_nb.client.debugger import Debugger

_DOES = {
    "embed_tokens": "look up the tokens' embeddings",
    "wte": "look up the tokens' embeddings",
    "input_layernorm": "normalise the hidden state before attention",
    "post_attention_layernorm": "normalise the hidden state before the feed-forward block",
    "pre_feedforward_layernorm": "normalise the hidden state before the feed-forward block",
    "self_attn": "run attention",
    "q_proj": "project the queries",
    "k_proj": "project the keys",
    "v_proj": "project the values",
    "qkv_proj": "project queries, keys and values",
    "q_norm": "normalise the queries",
    "k_norm": "normalise the keys",
    "o_proj": "mix the heads back into the hidden state",
    "mlp": "run the feed-forward block",
    "gate_proj": "compute the gate",
    "up_proj": "project up",
    "down_proj": "project back down",
    "gate": "choose the experts",
    "switch_mlp": "run the chosen experts",
    "norm": "normalise the last hidden state",
    "lm_head": "make the logits",
}
_INSIDE = {
    Q: "has the queries",
    K: "has the keys",
    V: "has the values",
    SCORES: "has scored every key",
    PATTERN: "has the attention pattern",
    Z: "has mixed the values, head by head,",
}


def sentence_for(dbg: "Debugger") -> str:
    """What is about to happen where a debugger stands, and what the other ranks do meanwhile."""
    position = dbg.position
    if position.kind == "end":
        return position.about
    return f"{_here(position)} {_others(dbg)}".strip()


def _here(position: Position) -> str:
    who = f"Rank {position.rank}"
    if position.kind == SEND and position.hop:
        return f"{who} is about to send the hidden state to rank {position.hop.target}."
    if position.kind == RECV and position.hop:
        return f"{who} has received the hidden state from rank {position.hop.source}."
    name = position.module.rpartition(".")[2]
    whole_layer = name.isdigit()
    inside = f" of layer {position.layer}" if position.layer >= 0 and not whole_layer else ""
    if position.kind == INPUT:
        what = f"enter layer {position.layer}" if whole_layer else f"{_does(name, position.call)}{inside}"
        return f"{who} is about to {what}."
    if position.kind in KINDS:
        return f"{who} {_INSIDE[position.kind]}{inside}."
    assert position.kind == OUTPUT  # the last kind of a stop
    what = f"layer {position.layer}" if whole_layer else f"{name or 'the model'}{inside}"
    return f"{who} has left {what}."


def _does(name: str, call: int) -> str:
    if "rope" in name or "rotary" in name:
        return f"rotate the {'queries' if call == 1 else 'keys'}"
    return _DOES.get(name, f"run {name}" if name else "run the model")


def _others(dbg: "Debugger") -> str:
    here, last = dbg.position.rank, dbg.pipe.num_ranks - 1
    parts = []
    if here > 0:
        before = "Rank 0 is" if here == 1 else f"Ranks 0–{here - 1} are"
        parts.append(f"{before} finished and wait{'s' if here == 1 else ''} for the token.")
    if here < last:
        after = f"Rank {last} waits" if here + 1 == last else f"Ranks {here + 1}–{last} wait"
        parts.append(f"{after} for the hidden state.")
    return " ".join(parts)
