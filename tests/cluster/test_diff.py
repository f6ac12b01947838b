"""Comparisons on real ranks: a split with one process, with a saved trace, with another pipe; faults as the control."""

import json
from pathlib import Path

import pytest

import mlx_nb
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError
from tests.cluster.conftest import loaded
from tests.tiny import make_tiny

pytestmark = [pytest.mark.cluster]

IDS = [(place * 7) % 101 for place in range(21)]


@pytest.mark.parametrize("which", [pytest.param("pipe2", marks=pytest.mark.soak), "tcp_pipe3"])
def test_smollm2_over_ranks_is_what_one_process_computes(which: str, request: pytest.FixtureRequest) -> None:
    pipe: Pipe = request.getfixturevalue(which)
    before = current.pipe

    report = pipe.diff(mlx_nb.reference(), IDS)

    assert report.ok, report
    assert report.exit_code == 0
    beside = ["embed_tokens.output", "norm.output", "logits"]
    assert [row.site for row in report.rows] == [
        beside[0],
        *(f"layers.{layer}.output" for layer in range(30)),
        *beside[1:],
    ]
    assert {(row.free.max, row.forced.max) for row in report.rows if row.free and row.forced} == {(0.0, 0.0)}
    assert {row.rank for row in report.rows} == set(range(pipe.num_ranks))
    assert current.pipe is before
    assert pipe.cluster.pipes == [pipe]  # the one process has gone again

    with pipe.fault("rope_base", layer=28):
        report = pipe.diff(mlx_nb.reference(), IDS)

    assert not report
    assert report.first is not None
    assert report.first.site == "layers.28.self_attn.rope#1.output"
    assert report.first.rank == pipe.num_ranks - 1
    assert [row.site for row in report.rows if row.verdict != "same"] == ["layers.28.output"]


@pytest.mark.parametrize(
    ("fault", "layer", "by", "site"),
    [
        ("mask_off_by_one", 5, 1, "layers.5.self_attn.o_proj.input"),
        ("norm_epsilon", 2, 1, "layers.2.input_layernorm.output"),
        ("kv_offset", 6, -1, "layers.6.self_attn.rope#1.output"),
    ],
)
def test_a_fault_is_found_inside_its_layer_and_later_layers_are_not_blamed(
    fault: str, layer: int, by: float, site: str, cluster3: Cluster, tiny_folders: Path, tmp_path: Path
) -> None:
    with loaded(cluster3, tiny_folders / "gemma3") as pipe:
        with pipe.fault(fault, layer=layer, by=by) as put:
            report = pipe.diff(mlx_nb.reference(), IDS, prefill_step_size=8, max_tokens=3)

        assert report.first is not None
        assert (report.first.site, report.first.rank) == (site, put.rank)
        assert [row.layer for row in report.rows if row.verdict != "same"] == [layer]
        assert all(row.free.relative == 0 for row in report.rows if row.free and 0 <= row.layer < layer)
        assert "Usual causes" in str(report)
        assert json.loads(report.to_json(tmp_path / "diff.json"))["ok"] is False
        assert site in report.to_markdown(tmp_path / "diff.md") == (tmp_path / "diff.md").read_text()
        assert site in report._repr_html_()


def test_a_saved_trace_and_another_pipe_are_compared_with(
    cluster3: Cluster, tiny_folders: Path, tmp_path: Path
) -> None:
    with loaded(cluster3, tiny_folders / "qwen3") as pipe:
        sites = ["layers.*", "layers.*.input", "logits"]
        path = pipe.trace(IDS, sites=sites, prefill_step_size=7).save(tmp_path / "clean")
        saved = mlx_nb.open_trace(path)

        assert pipe.diff(saved, sites="layers.*,logits", prefill_step_size=7).ok
        with pipe.fault("layer_skipped", layer=3):
            report = pipe.diff(saved, prefill_step_size=7)
        assert report.first is not None
        assert report.first.site == "layers.3.output"

        with loaded(cluster3, tiny_folders / "qwen3", split=[3, 1, 1]) as other:
            report = pipe.diff(other, IDS)
            assert report.ok
            assert "(float32, layers 3+1+1) ·" in report.headline  # both have the same name
        with loaded(cluster3, tiny_folders / "qwen3", dtype="bfloat16") as other:
            report = pipe.diff(other, IDS)
            assert report.worst is not None
            assert report.worst.free is not None
            assert report.worst.free.relative > 1e-4
            assert report.ok, report  # by bfloat16's tolerance, each layer given the same
            assert not pipe.diff(other, IDS, tol=1e-6).ok

        with pytest.raises(OptionError, match="cannot be compared with 3"):
            pipe.diff(3, IDS)
        with pytest.raises(OptionError, match="needs a prompt"):
            pipe.diff(mlx_nb.reference())
        with pytest.raises(OptionError, match="kind 'onnx'"):
            mlx_nb.reference(kind="onnx")
        with pytest.raises(OptionError, match="other prompts"):
            pipe.diff(saved, IDS[:5])


@pytest.mark.parametrize(
    ("kind", "fault", "rank", "site"),
    [
        ("llama_untied", "embed_scale", 0, "embed_tokens.output"),
        ("llama_untied", "wrong_head", 2, "lm_head.output"),
        pytest.param("qwen3", "token_shift", 0, "embed_tokens.output", marks=pytest.mark.soak),
        ("qwen3", "flat_logits", 2, "norm.output"),
        pytest.param("qwen3", "wrong_head", 2, "logits", marks=pytest.mark.soak),
    ],
)
def test_what_lies_before_and_behind_the_layers_is_compared_too(
    kind: str, fault: str, rank: int, site: str, cluster3: Cluster, tmp_path: Path
) -> None:
    with loaded(cluster3, make_tiny(kind, tmp_path / kind)) as pipe:
        for forced in (True, False):
            with pipe.fault(fault, rank=rank):
                report = pipe.diff(mlx_nb.reference(), IDS, forced=forced)

            assert report.first is not None
            assert (report.first.site, report.first.rank) == (site, rank)
            if forced:  # given what the other's were given, the layers are right
                assert [row.site for row in report.rows if row.verdict != "same"] == [site]
        assert pipe.diff(mlx_nb.reference(), IDS).ok


def test_a_trace_of_layers_alone_says_what_it_lacks(cluster3: Cluster, tiny_folders: Path) -> None:
    with loaded(cluster3, tiny_folders / "qwen3") as pipe:
        trace = pipe.trace(IDS, sites="layers.*", prefill_step_size=16)
        with pipe.fault("embed_scale", rank=0):
            report = pipe.diff(trace)

        assert "The trace has no embed_tokens.output,norm.output,logits" in str(report)
        assert report.first is not None  # nothing could be forced: all that follows differs
        assert report.first.site == "layers.0.output"
