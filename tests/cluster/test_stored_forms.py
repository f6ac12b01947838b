"""A spread of the forms in which a model can be stored, on real ranks; all of them are in tests/engine."""

from pathlib import Path

import numpy as np
import pytest

from mlx_nb.client.cluster import Cluster
from tests.cluster.conftest import loaded
from tests.engine.loopback import CHUNK, PROMPT
from tests.one_process import OneProcess
from tests.stored_forms import FORMS, SPREAD, make_stored

pytestmark = [pytest.mark.cluster]


def check(cluster: Cluster, form: str, folder: Path, dtype: str | None) -> None:
    """Logits of the prompt in three chunks, bit for bit, and the tokens that follow."""
    make_stored(form, folder)
    alone = OneProcess(folder, None, dtype)
    wanted = alone.logits()
    assert np.ptp(wanted) > 1  # the control: one token further is far off
    assert np.abs(np.roll(wanted, 1, axis=0) - wanted).max() > 1

    with loaded(cluster, folder, split=[2, 3], dtype=dtype) as pipe:
        logits = pipe.logits(list(PROMPT), chunk=CHUNK)
        gen = pipe.generate(list(PROMPT), max_tokens=12, prefill_step_size=CHUNK)

    assert np.abs(logits - wanted).max() == 0.0
    assert gen.token_ids == alone.tokens()


@pytest.mark.parametrize("form", SPREAD)
def test_two_ranks_compute_what_one_process_computes(cluster2: Cluster, form: str, tmp_path: Path) -> None:
    dtype = "native" if SPREAD.index(form) % 2 else None
    check(cluster2, form, tmp_path / "model", dtype)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", [None, "native"], ids=["float32", "as stored"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_on_real_ranks(cluster2: Cluster, form: str, dtype: str | None, tmp_path: Path) -> None:
    check(cluster2, form, tmp_path / "model", dtype)
