"""Ranks in one process and one thread, each with an instance of the same tiny model: no files, no MPI.

The code is the engine's own (cuts, stubs, ghosts, crossings, flattening, runs); only the loading from a
folder is left out. Weights are shared, so what differs between ranks is what the engine makes differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import numpy as np

from mlx_nb.engine.cuts import Cuts, legal_cuts
from mlx_nb.engine.hooks import Hooks
from mlx_nb.engine.kv import make_kv_cache, state_arrays
from mlx_nb.engine.layers import transformer_layers
from mlx_nb.engine.patching import Patches
from mlx_nb.engine.run import Run, Waiting
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.stubs import remove_stubs
from mlx_nb.engine.transport import Loopback, LoopbackWorld
from mlx_nb.shared.plan import split_layers
from mlx_nb.shared.request import GenerateOptions, RunRequest
from tests.engine.architectures import build, build_blank

PROMPT = (17, 4, 88, 23, 51, 9, 70, 35, 2, 64, 91, 12, 47, 80, 5, 33, 58, 19, 76, 41, 28)
CHUNK = 8
DECODED = 4


class Spy:
    """A model that keeps the logits of every pass."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.seen: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        output: mx.array = self._model(inputs, cache=cache)
        self.seen.append(np.array(output[0].astype(mx.float32)))
        return output


class Greedy:
    """A sampler: the likeliest token."""

    def pick(self, logits: mx.array, _tokens: list[int]) -> int:
        return int(mx.argmax(logits[0]).item())


class _NoText:
    tokenizer = None
    stop_ids = ()

    def detokenizer(self) -> None:
        return None


class MemoryStage(Stage):
    """A stage over a model that is in memory already."""

    def __init__(self, model: nn.Module, transport: Loopback, counts: Sequence[int], cuts: Cuts) -> None:
        self.name, self.model, self.transport = "tiny", model, transport
        self.publish = lambda _event: None
        self.rank, self.size = transport.rank, transport.size
        remove_stubs(transformer_layers(model))
        wanted = split_layers(cuts.num_layers, self.size, counts)
        self._place(cuts, wanted, even=False)
        self.prefill_step_size = CHUNK
        self.hooks = Hooks(model)
        self.patches = Patches()
        self.prompter: Any = _NoText()
        self._begin_without_runs()


@dataclass
class Ranks:
    """One architecture, ready to be cut anywhere."""

    models: list[nn.Module]
    cuts: Cuts

    @classmethod
    def of(cls, name: str, size: int = 0) -> "Ranks":
        """Instances of one architecture for `size` ranks, sharing their weights; 0 makes one for each layer."""
        model = build(name)
        models = [model]
        for _ in range(1, size or len(transformer_layers(model))):
            models.append(build_blank(name))
            models[-1].update(model.parameters())
        return cls(models, legal_cuts(model))

    def passes(self, counts: Sequence[int], chunk: int = CHUNK) -> list[np.ndarray]:
        """The logits ``[L, V]`` of every pass: the prompt in chunks, then decoded tokens."""
        world = LoopbackWorld(len(counts))
        stages = [
            MemoryStage(model, transport, counts, self.cuts)
            for model, transport in zip(self.models, world.transports(), strict=False)
        ]
        spy = Spy(stages[-1].model)
        stages[-1].model = spy
        options = GenerateOptions(max_tokens=DECODED + 1, prefill_step_size=chunk)
        request = RunRequest(run_id=1, tokens=PROMPT, options=options)
        runs = [stage.open_run(request) for stage in stages]
        runs[-1].batch.rows[0].sampler = Greedy()
        drive(runs)
        for stage in stages:
            stage.close()
        return spy.seen


def splits_of(count: int) -> list[list[int]]:
    """The splits that the sweep tries: every cut on two ranks, several on three, one layer a rank."""
    two = [[cut, count - cut] for cut in range(1, count)]
    three = [[1, 1, count - 2], [count - 2, 1, 1], [count - 2 * (count // 3), count // 3, count // 3]]
    return [*two, *three, [1] * count]


def drive(runs: list[Run]) -> None:
    """Let every run go on in turn until all have ended."""
    idle = 0
    while not all(run.greenlet.dead for run in runs):
        for run in runs:
            if not run.greenlet.dead:
                out = run.greenlet.switch()
                idle = idle + 1 if isinstance(out, Waiting) else 0
        assert idle < 10 * len(runs), "every rank waits for another"


def one_process(model: nn.Module, chunk: int = CHUNK) -> list[np.ndarray]:
    """The same passes in one process."""
    remove_stubs(transformer_layers(model))
    kv = make_kv_cache(model)
    tokens = list(PROMPT)
    bounds = [(start, min(start + chunk, len(PROMPT))) for start in range(0, len(PROMPT), chunk)]
    seen = []
    for number in range(len(bounds) + DECODED):
        start, stop = bounds[number] if number < len(bounds) else (len(tokens) - 1, len(tokens))
        output = model(mx.array(tokens[start:stop])[None], cache=kv)
        seen.append(np.array(output[0].astype(mx.float32)))
        mx.eval([array for entry in kv for array in state_arrays(entry)])
        if number >= len(bounds) - 1:
            tokens.append(int(mx.argmax(output[0, -1]).item()))
    return seen


def difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference in any logit of any pass; infinite where only one of them is a number."""
    assert [a.shape for a in one] == [b.shape for b in other]
    worst = 0.0
    for a, b in zip(one, other, strict=True):
        differ = a != b  # equal infinities do not: some models mark unused tokens with them
        if differ.any():
            far = float(np.abs(a[differ] - b[differ]).max())
            worst = max(worst, far if np.isfinite(far) else np.inf)
    return worst
