"""What users type for a place in the model, and what it means."""

import pytest

from mlx_nb.shared.errors import SiteError
from mlx_nb.shared.sites import resolve_site, short_spelling

LAYERS = [f"model.layers.{i}" for i in range(4)]
INSIDE = ("input_layernorm", "self_attn", "self_attn.q_proj", "self_attn.rope", "mlp", "mlp.down_proj")
MODULES = [
    "",
    "model",
    "model.embed_tokens",
    "model.norm",
    *LAYERS,
    *[f"{x}.{y}" for x in LAYERS for y in INSIDE],
]
OTHER = ["transformer.h.0", "transformer.h.1"]
OTHER_MODULES = [
    "",
    "transformer",
    "transformer.wte",
    *OTHER,
    *[f"{x}.{y}" for x in OTHER for y in ("attn", "ffn")],
]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("model.layers.3.mlp.output", "model.layers.3.mlp.output"),
        ("layers.3.mlp.output", "model.layers.3.mlp.output"),
        ("layers.3.mlp.input", "model.layers.3.mlp.input"),
        ("layers.3.mlp", "model.layers.3.mlp.output"),
        (" layers.3.mlp ", "model.layers.3.mlp.output"),
        ("layers.3.resid_pre", "model.layers.3.input"),
        ("layers.3.resid_post", "model.layers.3.output"),
        ("layers.3.attn_out", "model.layers.3.self_attn.output"),
        ("layers.3.mlp_out", "model.layers.3.mlp.output"),
        ("blocks.3.hook_resid_post", "model.layers.3.output"),
        ("blocks.*.hook_attn_out", "model.layers.*.self_attn.output"),
        ("layers.*.resid_post", "model.layers.*.output"),
        ("layers.3.self_attn.rope#2.input", "model.layers.3.self_attn.rope.input"),
        ("embed_tokens", "model.embed_tokens.output"),
        ("norm.input", "model.norm.input"),
        ("logits", "logits"),
        ("send", "send"),
        ("recv", "recv"),
    ],
)
def test_a_spelling_means_a_site(typed: str, meant: str) -> None:
    assert resolve_site(typed, MODULES, LAYERS) == meant


def test_other_models_keep_their_layers_elsewhere() -> None:
    assert resolve_site("h.1.attn_out", OTHER_MODULES, OTHER) == "transformer.h.1.attn.output"
    assert resolve_site("h.1.mlp_out", OTHER_MODULES, OTHER) == "transformer.h.1.ffn.output"


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (
            "layers.3.attn.output",
            "No site 'layers.3.attn.output'. Did you mean layers.3.self_attn.output (alias layers.3.attn_out)?",
        ),
        ("layers.3.mpl", "No site 'layers.3.mpl'. Did you mean layers.3.mlp.output (alias layers.3.mlp_out)?"),
        ("layers.3.self_attn.qproj", "No site 'layers.3.self_attn.qproj'. Did you mean layers.3.self_attn.q_proj.output?"),
        ("layers.3.mpl.input", "No site 'layers.3.mpl.input'. Did you mean layers.3.mlp.input?"),
        ("zzz", "No site 'zzz'. Type: pipe.sites() to see them all."),
    ],
)  # fmt: skip
def test_an_unknown_site_names_the_nearest(typed: str, wanted: str) -> None:
    with pytest.raises(SiteError) as error:
        resolve_site(typed, MODULES, LAYERS)

    assert str(error.value) == wanted


@pytest.mark.parametrize("typed", ["layers.9.mlp", "layers.9.resid_post", "", "layers.*.nothing"])
def test_what_the_model_does_not_have_is_refused(typed: str) -> None:
    with pytest.raises(SiteError):
        resolve_site(typed, MODULES, LAYERS)


def test_paths_are_shown_short() -> None:
    assert short_spelling("model.layers.3.mlp", LAYERS) == "layers.3.mlp"
    assert short_spelling("transformer.h.1", OTHER) == "h.1"
    assert short_spelling("lm_head", LAYERS) == "lm_head"


_LAYERS = [f"model.layers.{i}" for i in range(3)]


def _model(*inside: str) -> list[str]:
    return [
        "model",
        "model.embed_tokens",
        *(p for one in _LAYERS for p in [one, *(f"{one}.{n}" for n in inside)]),
    ]


_ATTENDS = ["self_attn", "self_attn.q_proj", "self_attn.o_proj", "mlp", "post_attention_layernorm"]


@pytest.mark.parametrize(
    ("inside", "typed", "meant"),
    [
        (_ATTENDS, "layers.1.resid_mid", "model.layers.1.post_attention_layernorm.input"),
        ([*_ATTENDS, "pre_feedforward_layernorm"], "layers.1.resid_mid", "model.layers.1.pre_feedforward_layernorm.input"),
        ([*_ATTENDS, "post_feedforward_layernorm"], "layers.1.resid_mid", "model.layers.1.mlp.input"),
        (_ATTENDS, "layers.*.q", "model.layers.*.self_attn.q_proj.output"),
        (_ATTENDS, "blocks.2.attn.hook_z", "model.layers.2.self_attn.o_proj.input"),
        (_ATTENDS, "blocks.2.hook_resid_mid", "model.layers.2.post_attention_layernorm.input"),
        (_ATTENDS, "hook_embed", "model.embed_tokens.output"),
        ([*_ATTENDS, "self_attn.sdpa"], "layers.1.pattern", "model.layers.1.self_attn.sdpa.pattern"),
        ([*_ATTENDS, "self_attn.sdpa"], "blocks.*.attn.hook_attn_scores", "model.layers.*.self_attn.sdpa.scores"),
        ([*_ATTENDS, "self_attn.sdpa"], "blocks.2.attn.hook_rot_q", "model.layers.2.self_attn.sdpa.q"),
        ([*_ATTENDS, "self_attn.sdpa"], "layers.2.self_attn.sdpa.v", "model.layers.2.self_attn.sdpa.v"),
        ([*_ATTENDS, "self_attn.sdpa"], "layers.*.sdpa.k", "model.layers.*.self_attn.sdpa.k"),
        (["self_attn.sdpa", "cross.sdpa"], "layers.1.pattern", "model.layers.1.**.sdpa.pattern"),
    ],
)  # fmt: skip
def test_short_names_follow_how_the_model_is_built(inside: list[str], typed: str, meant: str) -> None:
    assert resolve_site(typed, _model(*inside), _LAYERS) == meant


@pytest.mark.parametrize(
    ("inside", "typed", "why"),
    [
        (
            ["mixer", "mixer.out_proj"],
            "layers.1.q",
            r"not observable in this model: its layers have none of q_proj\.",
        ),
        (["mixer", "mixer.out_proj"], "layers.1.scores", "this model has no attention"),
        (
            _ATTENDS,
            "blocks.1.attn.hook_pattern",
            "attention does not call mlx-lm's shared scaled_dot_product",
        ),
        ([*_ATTENDS, "self_attn.sdpa"], "layers.9.pattern", "The layers are 0–2"),
        (
            [*_ATTENDS, "self_attn.sdpa"],
            "layers.1.mlp.scores",
            "nothing there calls .* These layers do: 0, 1, 2",
        ),
        (_ATTENDS, "layers.9.resid_mid", "The layers are 0–2"),
    ],
)
def test_what_a_model_does_not_have_is_refused_with_the_reason(
    inside: list[str], typed: str, why: str
) -> None:
    with pytest.raises(SiteError, match=why):
        resolve_site(typed, _model(*inside), _LAYERS)
