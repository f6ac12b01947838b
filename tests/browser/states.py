"""Realistic stepper states, and previews to go with them."""

import numpy as np

from mlx_nb.shared.preview import make_preview
from mlx_nb.shared.text import format_layers
from mlx_nb.shared.view_state import (
    BreakRow,
    KVRow,
    Lane,
    LayerCell,
    ModuleRow,
    SourcePane,
    StepperState,
    TokenCell,
    Wire,
    empty_state,
)

SYSTEM = [
    "<|im_start|>",
    "system",
    "↵",
    *["You", "·are", "·a", "·helpful", "·AI", "·assistant", "·named", "·Smol", "LM", ","],
    "·trained",
]
PROMPT = ["What", "·is", "·the", "·capital", "·of", "·France", "?"]
ATTENTION = [
    "        queries = queries.reshape(B, L, self.n_heads, -1).transpose(0, 2, 1, 3)",
    "        keys = keys.reshape(B, L, self.n_kv_heads, -1).transpose(0, 2, 1, 3)",
    "",
    "        if cache is not None:",
    "            queries = self.rope(queries, offset=cache.offset)",
    "            keys = self.rope(keys, offset=cache.offset)",
    "            keys, values = cache.update_and_fetch(keys, values)",
]


def tokens(length: int = 37, generated: int = 0, start: int = 0) -> list[TokenCell]:
    """A chat prompt of `length` tokens; the pass begins at `start`."""
    inside = length - len(PROMPT) - 5
    texts = [
        *(SYSTEM * (inside // len(SYSTEM) + 1))[:inside],
        *PROMPT,
        "<|im_end|>",
        "↵",
        "<|im_start|>",
        "assistant",
        "↵",
    ]
    answer = ["The", "·capital", "·of", "·France", "·is", "·Paris", ".", "<|im_end|>"]
    return [
        TokenCell(
            id=100 + i,
            text=text,
            template=not (inside <= i < inside + len(PROMPT)) and i < length,
            in_pass=i >= start,
            generated=i >= length,
        )
        for i, text in enumerate(texts + answer[:generated])
    ]


def lanes(ranks: int, layers: int, at: int, pass_tokens: int = 37) -> list[Lane]:
    """Layers before `at` are done, `at` is current; ``at == layers`` is the head."""
    found = []
    for rank in range(ranks):
        held = range(rank * layers // ranks, (rank + 1) * layers // ranks)
        done, here = held.stop <= at, at in held or (rank == ranks - 1 and at == layers)
        parts = ["embed"] * (rank == 0) + [format_layers(held)] + ["norm, head"] * (rank == ranks - 1)
        found.append(
            Lane(
                rank=rank,
                host=f"mini{rank + 1}",
                holds=", ".join(parts),
                status="stopped" if here else "waits",
                note=f"{pass_tokens} {'written' if done else 'pending'}",
                embed=("pending" if at < 0 else "done") if rank == 0 else None,
                head=("current" if at == layers else "pending") if rank == ranks - 1 else None,
                layers=[
                    LayerCell(
                        layer=i,
                        state="done" if i < at else "current" if i == at else "pending",
                        kv="written" if i < at else "pending",
                        breakpoint=1 if i == 3 else 0,
                        within=True,
                    )
                    for i in held
                ],
            )
        )
    return found


def wires(ranks: int, crossed: int, text: str) -> list[Wire]:
    return [
        Wire(source=i, text=text if i < crossed else "", state="crossed" if i < crossed else "idle")
        for i in range(ranks - 1)
    ]


def source(line: int = 90) -> SourcePane:
    return SourcePane(
        title="Attention.__call__",
        file="llama.py",
        breadcrumb=["Model", "LlamaModel", "TransformerBlock 15", "self_attn", "rope"],
        lines=[
            {"number": 86 + i, "text": text, "current": 86 + i == line} for i, text in enumerate(ATTENTION)
        ],
    )


def modules(layer: int) -> list[ModuleRow]:
    rows = [
        ("", "TransformerBlock", 0, "current"),
        (".input_layernorm", "RMSNorm", 1, "done"),
        (".self_attn", "Attention", 1, "current"),
        (".self_attn.q_proj", "Linear", 2, "done"),
        (".self_attn.k_proj", "Linear", 2, "done"),
        (".self_attn.v_proj", "Linear", 2, "done"),
        (".self_attn.rope", "RoPE", 2, "current"),
        (".self_attn.o_proj", "Linear", 2, "pending"),
        (".post_attention_layernorm", "RMSNorm", 1, "pending"),
        (".mlp", "MLP", 1, "pending"),
    ]
    return [
        ModuleRow(
            path=f"layers.{layer}{path}",
            class_name=name,
            depth=depth,
            state=state,
            shape="[1, 37, 576]" if state == "done" else "",
            site=f"layers.{layer}{path}.input",
            breakpoint=2 if path == ".mlp" else 0,
        )
        for path, name, depth, state in rows
    ]


def kv(ranks: int, layers: int, offset: str = "37") -> list[KVRow]:
    return [
        KVRow(
            rank=rank,
            layers=format_layers(range(rank * layers // ranks, (rank + 1) * layers // ranks)).split()[-1],
            class_name="KVCache",
            offset=offset if rank == 0 else "0",
            state="written" if rank == 0 else "pending",
        )
        for rank in range(ranks)
    ]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def preview(kind: str = "normal") -> bytes:
    array = noise(333, 64) + 0.8 * np.sin(np.arange(64) / 5).astype(np.float32)
    if kind == "nan":
        array[200:260, 20:40] = np.nan
        array[5, 5], array[6, 50] = np.inf, -np.inf
    if kind == "letters":
        array = noise(4, 12)
        array[1, 2:4], array[2, 5], array[0, 9] = np.nan, np.inf, -np.inf
    return make_preview(array)


def mid_prefill(ranks: int = 2, layers: int = 30) -> StepperState:
    """Rank 1 stands before its first rotation, as in the mock."""
    at = (ranks - 1) * layers // ranks
    return {
        **empty_state(),
        "sequence": 5,
        "model": "smollm2",
        "prompt": "What is the capital of France?",
        "status": "stopped",
        "where": f"prefill 0:37 · rank {ranks - 1}",
        "tokens": tokens(),
        "pass_text": "this pass: tokens 0:37",
        "lanes": lanes(ranks, layers, at),
        "wires": wires(ranks, ranks - 1, "[1, 37, 576] float32 · 83 KiB · 0.2 ms"),
        "site": f"layers.{at}.self_attn.rope#1",
        "suffix": ".input",
        "site_note": f"rank {ranks - 1} · Attention › RoPE · queries before rotation",
        "arguments": [
            {"name": "x", "shape": "[B 1, H 9, L 37, 64]", "dtype": "float32", "size": "83 KiB"},
            {"name": "offset", "shape": "0", "dtype": "", "size": ""},
        ],
        "numbers": [
            {"name": "min", "value": "-3.12"},
            {"name": "mean", "value": "0.01"},
            {"name": "rms", "value": "0.94"},
            {"name": "max", "value": "4.38"},
            {"name": "NaN", "value": "0"},
        ],
        "preview_label": "333 rows by 64 columns, pooled by extreme value; blue is negative, orange positive",
        "preview_note": "colours clipped at the 99th percentile",
        "source": source(),
        "sentence": f"Rank {ranks - 1} is about to rotate the queries of layer {at}. Rank 0 waits.",
        "modules": modules(at),
        "kv": kv(ranks, layers),
        "breakpoints": [
            BreakRow(number=1, site="layers.3.input", condition="–", hits=2, enabled=True),
            BreakRow(number=2, site="layers.*.mlp.input", condition="absmax > 100", hits=0, enabled=True),
            BreakRow(number=3, site="*", condition="nonfinite", hits=0, enabled=False),
        ],
    }


def start(ranks: int = 2, layers: int = 30) -> StepperState:
    """Before the embedding: nothing has been computed."""
    return {
        **mid_prefill(ranks, layers),
        "sequence": 1,
        "status": "ready",
        "where": "prefill 0:37 · rank 0",
        "lanes": lanes(ranks, layers, -1),
        "wires": wires(ranks, 0, ""),
        "site": "embed_tokens",
        "site_note": "rank 0 · LlamaModel › Embedding",
        "arguments": [{"name": "x", "shape": "[B 1, L 37]", "dtype": "int32", "size": "148 B"}],
        "numbers": [],
        "preview_label": "",
        "preview_limit": "",
        "preview_note": "",
        "source": None,
        "sentence": "Rank 0 is about to embed 37 tokens. Rank 1 waits.",
        "modules": [],
    }


def decode(ranks: int = 2, layers: int = 30) -> StepperState:
    """At the head, three tokens into the answer; a NaN has crept in."""
    state = mid_prefill(ranks, layers)
    return {
        **state,
        "sequence": 9,
        "where": f"decode 39:40 · rank {ranks - 1}",
        "tokens": tokens(generated=3, start=39),
        "pass_text": "this pass: token 39",
        "lanes": lanes(ranks, layers, layers, pass_tokens=40),
        "wires": wires(ranks, ranks - 1, "[1, 1, 576] float32 · 2 KiB · 0.1 ms"),
        "site": "lm_head",
        "suffix": ".output",
        "numbers": [*state["numbers"][:-1], {"name": "NaN", "value": "412"}],
        "sentence": f"Rank {ranks - 1} has the logits of token 40.",
    }


def finished(ranks: int = 2, layers: int = 30) -> StepperState:
    done = lanes(ranks, layers, layers + 1, pass_tokens=44)
    for lane in done:
        lane["status"], lane["head"] = "finished", lane["head"] and "done"
    return {
        **decode(ranks, layers),
        "sequence": 12,
        "status": "finished",
        "where": "44 tokens",
        "tokens": tokens(generated=8, start=99),
        "pass_text": "",
        "lanes": done,
        "sentence": "The answer is complete: The capital of France is Paris.",
    }


def failed(ranks: int = 2, layers: int = 30) -> StepperState:
    state = mid_prefill(ranks, layers)
    state["lanes"][-1]["status"] = "failed"
    return {
        **state,
        "sequence": 7,
        "status": "failed",
        "sentence": "Rank 1 stands where the exception was raised; every rank can be inspected.",
        "error": "ValueError: [matmul] Last dimension of first input with shape (1,37,576) must match "
        "second to last dimension of second input with shape (64,576).",
    }


def crowded() -> StepperState:
    """Everything long at once: 8 ranks, 80 layers on one of them, a long prompt, a long site."""
    state = mid_prefill(8, 96)
    site = "language_model.model.layers.79.block_sparse_moe.experts.switch_mlp.gate_projection_with_adapter"
    many = lanes(1, 80, 33)[0]
    many["embed"] = many["head"] = "done"
    state["lanes"][3]["layers"] = many["layers"]
    state["lanes"][3]["host"] = "a-mini-with-a-rather-long-host-name.example.org"
    tail = tokens(200)
    tail.insert(40, TokenCell(id=0, text="", template=False, in_pass=True, generated=False, more=3950))
    return {
        **state,
        "model": "DeepSeek-V3.1-Terminus-4bit-with-a-long-name",
        "prompt": "Summarise the following report, and then answer the questions below. " * 12,
        "where": "prefill 4096:8192 · rank 7 · chunk 2 of 9",
        "tokens": [{**token, "template": i < 9} for i, token in enumerate(tail)],
        "site": site,
        "site_note": "rank 7 · DecoderLayer › BlockSparseMoE › SwitchGLU › GateProjectionWithAdapter",
        "arguments": [
            *state["arguments"],
            {
                "name": "a_long_argument_name",
                "shape": "{" + "'key': 'value', " * 12 + "}",
                "dtype": "",
                "size": "",
            },
        ],
    }


NAMES = {
    "start": start,
    "mid_prefill": mid_prefill,
    "decode": decode,
    "finished": finished,
    "failed": failed,
    "four_ranks": lambda: mid_prefill(4, 30),
    "eighty_layers": lambda: mid_prefill(4, 80),
    "one_rank": lambda: mid_prefill(1, 30),
    "crowded": crowded,
}


def make(name: str) -> tuple[StepperState, bytes]:
    state = NAMES[name]()
    kind = {"decode": "nan", "failed": "letters"}.get(name, "normal")
    return state, b"" if name == "start" else preview(kind)
