"""The bug hunt on two ranks: every fault is named by the check-up, and clean models are left alone."""

from pathlib import Path

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.faults import faults
from tests.cluster.conftest import loaded
from tests.faults.hunt import CASES, CLEAN, found, hunt, make

pytestmark = [pytest.mark.cluster]


@pytest.mark.parametrize("model", list(dict.fromkeys([case.model for case in CASES])))
def test_every_fault_is_named(model: str, cluster2: Cluster, tmp_path: Path) -> None:
    with loaded(cluster2, make(model, tmp_path / model)) as pipe:
        missed = []
        for case in [case for case in CASES if case.model == model]:
            ok, row = hunt(pipe, case)
            if not ok:
                missed.append(" ".join(row))

        assert not missed
        assert pipe.check().ok  # all of them are out again


@pytest.mark.parametrize("model", CLEAN)
def test_nothing_is_found_on_clean_models(model: str, cluster2: Cluster, tmp_path: Path) -> None:
    with loaded(cluster2, make(model, tmp_path / model)) as pipe:
        report = pipe.check()

        assert report.ok, report


def test_there_are_enough_of_them_and_the_judge_can_say_no(cluster2: Cluster, tmp_path: Path) -> None:
    assert {case.fault for case in CASES} == {kind.name for kind in faults()}
    assert len(faults()) >= 25
    with loaded(cluster2, make("qwen3", tmp_path / "qwen3")) as pipe:
        with pipe.fault("rope_base", layer=4) as fault:
            report = pipe.check()

            assert found(fault.sites, 1, report)
            assert not found(fault.sites, 0, report)
            assert not found(("model.layers.3.self_attn.rope",), 1, report)
            assert "Its base is 20000.0, should be 10000.0." in str(report)
            for wrong, said in [
                ({"name": "nothing"}, "mlx_nb.faults"),
                ({"name": "nan", "rank": 7}, "ranks of this pipe are 0–1"),
                ({"name": "nan", "layer": 9}, "layers are 0–4"),
                ({"name": "nan", "layer": 0, "rank": 1}, "on rank 0"),
                ({"name": "soft_cap"}, "needs a soft cap"),
                ({"name": "embed_scale"}, "rank=0"),
            ]:
                with pytest.raises(OptionError, match=said):
                    pipe.fault(**wrong)  # type: ignore[arg-type]
        assert pipe.check().ok
        assert "removed" in repr(fault)
