"""A pipe against transformers in torch: clean models are the same module by module, faults are named."""

from pathlib import Path

import pytest

import mlx_nb
from mlx_nb.client.cluster import Cluster
from mlx_nb.shared.errors import OptionError, WeightsError
from tests.cluster.conftest import loaded
from tests.tiny import make_tiny
from tests.torch_side.architectures import CONFIGS, convert, make
from tests.torch_side.table import FAULTS, IDS, compare

pytestmark = [pytest.mark.cluster]


@pytest.mark.torch
@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_module_of_a_clean_model_is_the_same_and_a_fault_is_named(
    name: str, cluster2: Cluster, tmp_path: Path
) -> None:
    make(tmp_path, name)
    with loaded(cluster2, convert(tmp_path / name, tmp_path / "converted")) as pipe:
        report = compare(pipe, tmp_path / name)

        assert report.ok, report
        assert report.tokens > len(IDS)
        assert len(report.rows) > 70
        assert all(row.forced and row.forced.relative <= 1e-4 for row in report.rows)
        for fault, (_, site) in ((f, at) for f, at in FAULTS.items() if at[0] == name):
            with pipe.fault(fault) as put:
                found = pipe.diff(mlx_nb.reference(str(tmp_path / name), kind="transformers"), IDS).first
            assert found is not None
            assert found.site.endswith(site)
            assert found.rank == put.rank


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "fault", "rank", "site"),
    [
        ("llama", "embed_scale", 0, "embed_tokens.output"),
        ("llama", "wrong_head", 1, "lm_head.output"),
        # What transformers scales inside its embedding is compared where it goes into the first layer.
        ("gemma3_text", "token_shift", 0, "embed_tokens.output"),
    ],
)
def test_what_is_wrong_beside_the_layers_is_named_too(
    name: str, fault: str, rank: int, site: str, cluster2: Cluster, tmp_path: Path
) -> None:
    make(tmp_path, name)
    with loaded(cluster2, convert(tmp_path / name, tmp_path / "converted")) as pipe:
        assert pipe.diff(mlx_nb.reference(str(tmp_path / name), kind="transformers"), IDS).ok
        with pipe.fault(fault, rank=rank):
            report = pipe.diff(mlx_nb.reference(str(tmp_path / name), kind="transformers"), IDS)

    assert report.first is not None
    assert (report.first.site, report.first.rank) == (site, rank)
    assert all(
        row.verdict == "same"
        for row in report.rows
        if row.site.startswith("layers.") and "output" in row.site
    )


@pytest.mark.torch
def test_tensors_that_transformers_would_make_up_are_refused(cluster2: Cluster, tmp_path: Path) -> None:
    make(tmp_path, "qwen3_moe")
    converted = convert(tmp_path / "qwen3_moe", tmp_path / "converted")
    with loaded(cluster2, converted) as pipe, pytest.raises(WeightsError, match="it was converted"):
        pipe.diff(mlx_nb.reference(kind="transformers"), IDS)


def test_without_torch_the_error_says_what_to_install(
    cluster2: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not here', name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = r"needs torch, which is not installed.*mlx-nb\[torch\]"
    with (
        loaded(cluster2, make_tiny("llama", tmp_path / "llama")) as pipe,
        pytest.raises(OptionError, match=said),
    ):
        pipe.diff(mlx_nb.reference(kind="transformers"), IDS)
