"""One rank's share of a model: loaded, and in its place among the others'. `Stage` runs it."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_nb.engine.adapters import Adapter
from mlx_nb.engine.crossing import Crossing
from mlx_nb.engine.cuts import Cuts, legal_cuts
from mlx_nb.engine.layers import layer_paths, named_modules, transformer_layers
from mlx_nb.engine.loading import (
    Keep,
    build_model,
    explain_lacking,
    materialise,
    owned_parameters,
    read_config,
    results_of,
    set_compute_dtype,
    text_config,
)
from mlx_nb.engine.memory import release
from mlx_nb.engine.model_code import ModelCode, pointing_at
from mlx_nb.engine.needed import files_of_share
from mlx_nb.engine.own_code import check_code
from mlx_nb.engine.prompt import Prompter
from mlx_nb.engine.provenance import Provenance
from mlx_nb.engine.pytree import like
from mlx_nb.engine.stubs import install_stubs
from mlx_nb.engine.summary import Sizes
from mlx_nb.engine.transport import Transport
from mlx_nb.engine.unloaded import stored_dtype
from mlx_nb.engine.unpack import Packed
from mlx_nb.engine.weights import absent_files
from mlx_nb.shared.code_file import CodeFile
from mlx_nb.shared.errors import AdapterError, CodeError, ModelError, PartOfModelError, WeightsError
from mlx_nb.shared.legal import choose_counts
from mlx_nb.shared.loaded import LoadedShard
from mlx_nb.shared.plan import Shard, split_layers

# Small chunks overlap over the ranks and keep an interrupt short on a CPU; Metal wants larger ones.
CPU_PREFILL_STEP, METAL_PREFILL_STEP = 64, 512

Publish = Callable[[dict[str, Any]], object]


class Share:
    """What one rank holds of one model; only `Stage` is made of it.

    Attributes:
        model: The whole model; other ranks' layers are stubs.
        shard: The layers held here.
        transport: The links to the other ranks.
        prompter: The tokenizer.
        code: The file under work that builds the model; None for mlx-lm's or the folder's own code.
        stored_as: The tensor of the files that each parameter is, where it is one as it is.
        parents: Paths of the modules that have submodules.
        order: Module paths, and those of attention, in the order in which one pass first calls them.
        repeated: Paths of the modules, and of attention in them, that one pass calls more than once.
        attends: Paths of the modules that call the shared attention function, each with ``.sdpa`` behind.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        transport: Transport,
        *,
        size: int | None = None,
        split: str | Sequence[int] = "even",
        dtype: str | None = None,
        adapter_path: str | None = None,
        trust_remote_code: bool = False,
        publish: Publish = lambda _event: None,
        keep: Keep | None = None,
        code: CodeFile | None = None,
        known: "Share | None" = None,
    ) -> None:
        """Load a share.

        Arguments as `Cluster.load`; `keep` as `materialise` takes it; `known` is the same model's share run by other
        code, whose weights are taken where both have them.
        """
        began = time.perf_counter()
        self.dtype_wish = dtype
        self.name, self.folder, self.transport, self.publish = name, folder, transport, publish
        self.rank, self.size = transport.rank, size or transport.size
        self.trusted = trust_remote_code
        with self._saying_where(), pointing_at(code):
            self._load(split, dtype, adapter_path, keep, code, known)
        release()
        self.load_s = time.perf_counter() - began
        on_metal = mx.default_device() == mx.Device(mx.gpu)
        self.prefill_step_size = METAL_PREFILL_STEP if on_metal else CPU_PREFILL_STEP
        heads = int(self.config.get("num_attention_heads", 0) or 0)
        self.sizes = Sizes(
            hidden=int(self.config.get("hidden_size", 0) or 0),
            heads=heads,
            kv_heads=int(self.config.get("num_key_value_heads", heads) or 0),
            vocabulary=self.prompter.vocabulary,
        )

    def _load(
        self,
        split: str | Sequence[int],
        dtype: str | None,
        adapter_path: str | None,
        keep: Keep | None,
        code: CodeFile | None,
        known: "Share | None",
    ) -> None:
        """Build the model, take a place in it, and read what is needed there.

        Raises:
            MlxNbError: The model, its weights, the adapter or the split cannot be used.
        """
        self.config = text_config(read_config(self.folder))
        if code is None:
            check_code(self.folder, self.config, trusted=self.trusted)
        self.code = None if code is None else ModelCode(code)
        self.model, provenance = self._build(split)
        if self.code is not None and provenance.misfits:
            # Also those of other ranks: with a shape that is wrong the first pass would fail, and not say why.
            error = explain_lacking(sorted(provenance.misfits), provenance, self.folder)
            raise self.code.explain(error, self.model)
        # Before any weight is read: what it refuses would have cost the time.
        self.prompter = Prompter(self.folder, self.config, trust_remote_code=self.trusted)
        layers = transformer_layers(self.model)
        wanted = split_layers(len(layers), self.size, split, model=self.name)
        self.adapter = Adapter(adapter_path, self.model, self.name) if adapter_path else None
        self.model, self.dtype, packed = set_compute_dtype(self.model, dtype)
        self._place(legal_cuts(self.model), wanted, even=split == "even")
        received = None if self.shard.is_first else like(self.cuts.message(self.shard.layers.start))
        results = results_of(self.model, received, make_crossing=self.crossing, is_last=self.shard.is_last)
        # Whatever the share reads comes from a file: MLX would leave it random without a word.
        if lacking := provenance.lacking(results):
            error = explain_lacking(lacking, provenance, self.folder)
            raise error if self.code is None else self.code.explain(error, self.model)
        if self.adapter and (lacking := self.adapter.provenance.lacking(results)):
            raise self.adapter.explain(lacking)
        self.owned = owned_parameters(self.model, results)
        del results  # it would keep what is read on the way to an owned parameter
        self.stored_as = provenance.stored_as
        self._take_over(known, packed)
        self.weight_bytes = materialise(self.model, self.owned, packed, self.folder, keep)

    def _take_over(self, known: "Share | None", packed: dict[str, Packed]) -> None:
        """Take the weights that another stage of this model has in memory, where they are the same tensors of the files.

        What the model's code makes of tensors at load (it stacks or transposes some) is made again: that may have changed.
        """
        self.taken_over: tuple[str, ...] = ()
        if known is None or known.dtype != self.dtype or known.adapter or self.adapter:
            return

        def same(name: str) -> bool:
            parts = [
                name,
                *(f"{name.removesuffix('weight')}{part}" for part in ("scales", "biases") if name in packed),
            ]
            return (
                all(self.stored_as.get(part) == known.stored_as.get(part) for part in parts)
                and name in self.stored_as
            )

        taken = {
            name: known.owned[name]
            for name, array in self.owned.items()
            if name in known.owned and same(name) and known.owned[name].shape == array.shape
        }
        for name in taken:
            packed.pop(name, None)
        self.owned.update(taken)
        self.model.update(tree_unflatten(list(taken.items())), strict=False)
        self.taken_over = tuple(taken)

    def _build(self, split: str | Sequence[int]) -> tuple[nn.Module, Provenance]:
        """The whole model; where weight files are absent, from those that hold this rank's share.

        Raises:
            WeightsError: A file that this rank needs is missing.
            PartOfModelError: mlx-lm cannot do without the others.
        """
        if self.code is not None:
            return build_model(self.folder, trust_remote_code=self.trusted, code=self.code)
        absent = absent_files(self.folder)
        wanted = files_of_share(self.folder, self.rank, self.size, split, name=self.name) if absent else None
        if wanted is None:
            return build_model(self.folder, trust_remote_code=self.trusted)
        if lost := sorted(wanted & absent):
            raise WeightsError(
                f"The weight file {lost[0]} is missing from {self.folder}.",
                "Fetch the model again, or copy the file there.",
            )
        try:
            model, provenance = build_model(self.folder, trust_remote_code=self.trusted, part=True)
        except ModelError as error:
            raise PartOfModelError(error.problem, error.fix) from error
        # What stands in for the absent tensors is never computed, but has a dtype.
        dtype = getattr(mx, stored_dtype(self.folder, read_config(self.folder)))
        stand_ins = {
            name: array.astype(dtype)
            for name, array in provenance.unfilled.items()
            if mx.issubdtype(array.dtype, mx.floating)
        }
        model.update(tree_unflatten(list(stand_ins.items())))
        return model, provenance

    @contextmanager
    def _saying_where(self) -> Iterator[None]:
        """Put the rank into an error about files: on several hosts, another one's copy may be whole."""
        try:
            yield
        except (WeightsError, AdapterError, CodeError) as error:
            raise type(error)(f"Rank {self.rank} ({_host()}): {error.problem}", error.fix) from error

    def _place(self, cuts: Cuts, wanted: Sequence[Shard], *, even: bool) -> None:
        """Take this rank's place in the model: layers, names, stubs. No weight is read.

        Raises:
            PlanError: The model cannot be cut there.
        """
        layers = transformer_layers(self.model)
        self._name_modules(layers)
        self.cuts = cuts
        counts = [len(shard.layers) for shard in wanted]
        counts, self.split_reason = choose_counts(cuts.plain, counts, even=even, model=self.name)
        self.shards = split_layers(len(layers), self.size, counts, model=self.name)
        self.shard = self.shards[self.rank]
        calls = self.cuts.rehearsal.calls
        self.attends = self.cuts.rehearsal.attends
        self.repeated = frozenset(
            path for path, times in [*calls.items(), *self.attends.items()] if times > 1
        )
        self.order = tuple(self.cuts.rehearsal.order)
        install_stubs(layers, self.shard.layers)

    def crossing(self, kv: list[Any]) -> Crossing:
        """What one pass takes over from the rank before, and owes the rank after."""
        return Crossing.of(self.cuts, self.shard.layers, kv)

    def _name_modules(self, layers: list[Any]) -> None:
        paths = layer_paths(self.model)
        self._layer_paths = [paths.get(id(layer), f"layers.{i}") for i, layer in enumerate(layers)]
        self._layer_of_path = {path: i for i, path in enumerate(self._layer_paths)}
        names = [path for path, _ in named_modules(self.model)]
        # Every prefix of a path; those that are lists, such as `model.layers`, are no modules and do not hurt.
        self.parents = {
            ".".join(parts[:end]) for parts in (n.split(".") for n in names) for end in range(len(parts))
        }

    def layer_at(self, path: str) -> int:
        """The index of the layer at a module path; -1 if it is not a whole layer."""
        return self._layer_of_path.get(path, -1)

    def layer_path(self, layer: int) -> str:
        """The module path of a layer."""
        return self._layer_paths[layer]

    def layer_inside(self, path: str) -> int:
        """The layer that a module path lies in or is; -1 for none."""
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            if (layer := self.layer_at(".".join(parts[:end]))) >= 0:
                return layer
        return -1

    def loaded(self) -> LoadedShard:
        """What the client needs to know of this rank's share."""
        return LoadedShard(
            name=self.name,
            dtype_wish=self.dtype_wish,
            rank=self.rank,
            layers=(self.shard.layers.start, self.shard.layers.stop),
            num_layers=self.shard.num_layers,
            host=_host(),
            weight_bytes=self.weight_bytes,
            load_s=self.load_s,
            dtype=self.dtype,
            folder=str(self.folder),
            hidden_size=self.sizes.hidden,
            vocabulary=self.sizes.vocabulary,
            stop_ids=self.prompter.stop_ids,
            has_tokenizer=self.prompter.tokenizer is not None,
            prefill_step_size=self.prefill_step_size,
            layer_paths=tuple(self._layer_paths),
            modules=tuple((path, type(module).__name__) for path, module in named_modules(self.model)),
            attends=tuple(self.attends),
            order=self.order,
            parameters=tuple(self.owned),
            split_reason=self.split_reason,
            cuts=self.cuts.plain,
            adapter=str(self.adapter.folder) if self.adapter else "",
            trusted=self.trusted,
            code=self.code.file.path if self.code else "",
            taken_over=len(self.taken_over),
        )


def _host() -> str:
    return platform.node().split(".")[0]
