"""A check-up of one rank's share: against its files, and in a short run that is made again on a fresh copy."""

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_nb.engine.compare import difference
from mlx_nb.engine.drive import Driver
from mlx_nb.engine.kv import offset_of
from mlx_nb.engine.memory import release
from mlx_nb.engine.probe import Probe
from mlx_nb.engine.pytree import arrays_in
from mlx_nb.engine.shadow import Shadow
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.witness import Seen, Witness, crossed
from mlx_nb.shared.errors import MlxNbError, OptionError, RankLostError, RankSilentError, RunAbortedError
from mlx_nb.shared.findings import Finding, RankFindings, relative
from mlx_nb.shared.position import INPUT, OUTPUT
from mlx_nb.shared.request import RunRequest

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run

FLAT = 1e-6
"""Logits whose spread is below this share of their size tell no token from another."""


def check_up(stage: Stage, request: RunRequest, driver: Driver) -> RankFindings:
    """Check a rank. Called on all ranks together, with one request.

    The fresh copy shares the arrays that are as their files have them, so it takes little memory besides.

    Raises:
        MlxNbError: The run failed, or the files cannot be read any more.
    """
    weights = WeightCheck(stage)
    with stage.aside():
        run = stage.open_run(request)
        witness = Witness(run)
        run.recorder = witness  # type: ignore[assignment]  # the same three methods
        run.probe = Probe(run, keeps_past=False)
        stage.hooks.acquire()
        raised: list[Finding] = []
        state = "failed"
        try:
            state = driver.run_to_end(run).kind
        except (OptionError, RankLostError, RankSilentError):
            raise
        except RunAbortedError:
            pass  # another rank tells why
        except MlxNbError as error:
            raised = [_raised(run, error)]
        finally:
            stage.close_run(request.run_id)
    common: dict[str, Any] = {
        "rank": stage.rank,
        "layers": (stage.shard.layers.start, stage.shard.layers.stop),
    }
    if state == "interrupted":
        return RankFindings(**common, state=state)
    fresh = weights.fresh_copy()
    shadow = Shadow(fresh, stage.model, request.options)
    shadow.follow(witness)
    found = [*weights.findings, *shadow.findings, *raised, *_spoilt(stage, witness), *_flat(stage, witness)]
    modules, worst = shadow.modules, shadow.worst
    del shadow, fresh
    release()
    return RankFindings(
        **common,
        state=state,
        findings=tuple(found),
        tokens=tuple(run.tokens),
        spans=tuple((one.start, one.stop) for one in witness.whole),
        offsets=_offsets(run),
        received=tuple(crossed(one.received) for one in witness.whole if one.received is not None),
        sent=tuple(crossed(one.sent) for one in witness.whole if one.sent is not None),
        parameters=weights.count,
        parameter_bytes=weights.size_bytes,
        modules=modules,
        worst=worst,
    )


class WeightCheck:
    """Compares what a rank computes with against the files, one tensor after the other.

    Attributes:
        findings: What is not as its file has it.
        count, size_bytes: What was compared.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._live = dict(tree_flatten(stage.model.parameters()))
        self.findings: list[Finding] = []
        self.count = self.size_bytes = 0

    def fresh_copy(self) -> Stage:
        """This rank's share, loaded once more."""
        stage = self._stage
        counts = [len(shard.layers) for shard in stage.shards]
        return Stage(
            stage.name,
            stage.folder,
            stage.transport,
            size=stage.size,
            split=counts,
            dtype=stage.dtype_wish,
            adapter_path=str(stage.adapter.folder) if stage.adapter else None,
            trust_remote_code=stage.trusted,
            code=stage.code.file if stage.code else None,
            keep=self._compare,
        )

    def _compare(self, name: str, stored: mx.array) -> mx.array:
        live = self._live.get(name)
        self.count += 1
        self.size_bytes += stored.nbytes
        if live is None:
            self._tell(name, "the model does not have it any more")
            return stored
        if live.shape != stored.shape or live.dtype != stored.dtype:
            self._tell(
                name,
                f"it is {list(live.shape)} {_dtype(live)}, should be {list(stored.shape)} {_dtype(stored)}",
            )
            return stored
        if mx.array_equal(live, stored, equal_nan=mx.issubdtype(live.dtype, mx.floating)).item():
            return live
        self._tell(name, self._how(name, live, stored))
        return stored

    def _how(self, name: str, live: mx.array, stored: mx.array) -> str:
        """In what way a tensor is not the stored one."""
        if stored.ndim == 2 and stored.shape[0] == stored.shape[1] and mx.array_equal(live, stored.T).item():
            return "it is the transpose of what its file has"
        layer = self._stage.layer_inside(name)
        if layer >= 0:
            path = self._stage.layer_path(layer)
            for other in range(self._stage.shard.num_layers):
                twin = self._live.get(name.replace(path, self._stage.layer_path(other), 1))
                if other != layer and twin is live:
                    return f"it is layer {other}'s: that layer was loaded twice"
        if stored.ndim > 1 and _same_rows(live, stored):
            return "its rows are those of its file in another order"
        pair = difference(live, stored)
        mx.eval(pair.numbers)
        return f"it is not what its file has: {pair.told}"

    def _tell(self, name: str, what: str) -> None:
        self.findings.append(
            Finding(
                kind="weights",
                rank=self._stage.rank,
                site=name,
                what=what,
                layer=self._stage.layer_inside(name),
                look="pipe.unload(), then load it again",
            )
        )


def _same_rows(live: mx.array, stored: mx.array) -> bool:
    """Whether two arrays have the same rows, in whatever order."""
    rows = [
        mx.sort(array.reshape(array.shape[0], -1).astype(mx.float32).sum(axis=1)) for array in (live, stored)
    ]
    return bool(mx.allclose(rows[0], rows[1], rtol=1e-5, atol=1e-5).item())


def _dtype(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")


def _offsets(run: "Run") -> tuple[tuple[int, int], ...]:
    """The KV offset of each layer that writes one."""
    return tuple(
        (layer, offset_of(run.kv[place]))
        for layer, places in sorted(run.layer_places.items())
        for place in places
        if not run.stage._never_writes(run.kv[place], place)
    )


def _raised(run: "Run", error: MlxNbError) -> Finding:
    """Where the run has failed."""
    path = run.fallen.event.module if run.fallen is not None else ""
    return Finding(
        kind="raised",
        rank=run.stage.rank,
        site=path or "the run",
        what=error.problem,
        layer=run.stage.layer_inside(path),
        look="pipe.generate(…), then pipe.pm()",
        at=(len(run.passes), 0),
    )


def _spoilt(stage: Stage, witness: Witness) -> list[Finding]:
    """The module that first returns NaN or infinite values, though it was given none."""
    for number, seen in enumerate(witness.whole):
        exits = [(call, one) for call, one in seen.calls.items() if call[0] == OUTPUT]
        for (_, path, count), after in sorted(exits, key=lambda item: item[1].tick):
            before = seen.calls.get((INPUT, path, count))
            holes = _holes(arrays_in(after.value))
            if (
                not holes or before is None
            ):  # the model itself begins on rank 0: what it is given came by a hop
                continue
            if _holes(arrays_in(list(before.arguments.values())[:1])):
                continue
            return [
                Finding(
                    kind="nan",
                    rank=stage.rank,
                    site=path,
                    what=f"it returns {holes} NaN or infinite values, and was given none (tokens {seen.start}:{seen.stop})",
                    layer=stage.layer_inside(path),
                    look="dbg = pipe.debug(…); dbg.until('" + path + ".output')",
                    at=(number, after.tick),
                )
            ]
    return []


def _holes(arrays: list[mx.array]) -> int:
    return sum(
        int(np.array((~mx.isfinite(array)).sum()))
        for array in arrays
        if mx.issubdtype(array.dtype, mx.floating)
    )


def _flat(stage: Stage, witness: Witness) -> list[Finding]:
    """Logits that are all alike: argmax then says the first token of the vocabulary, for ever."""
    if not stage.shard.is_last:
        return []
    for number, seen in enumerate(witness.whole):
        after = seen.calls.get((OUTPUT, "", 1), Seen(0))
        for logits in arrays_in(after.value)[:1]:
            last = logits[:, -1].astype(mx.float32)
            low, high = float(np.array(last.min())), float(np.array(last.max()))
            if high - low <= FLAT * max(abs(low), abs(high)):
                what = f"the logits are flat: all between {low:.4g} and {high:.4g}, a spread of {relative(high - low)}"
                return [
                    Finding(
                        kind="flat",
                        rank=stage.rank,
                        site="the logits",
                        what=what,
                        look="dbg = pipe.debug(…); dbg.until('logits')",
                        at=(number, after.tick),
                    )
                ]
    return []
