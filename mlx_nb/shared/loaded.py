"""What a rank reports once its share of a model is loaded."""

from dataclasses import dataclass

from mlx_nb.shared.legal import LegalCuts


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedShard:
    """One rank's share of a loaded model.

    Attributes:
        name: The model as it was asked for.
        dtype_wish: The dtype as it was asked for; None left it to the rank.
        rank: The rank.
        layers: First layer held and the one after the last.
        num_layers: Layers in the whole model.
        host: The rank's host name.
        weight_bytes: Bytes of the weights held, in the compute dtype.
        load_s: Seconds it took.
        dtype: What it computes in.
        folder: Where the model's files are on this host.
        hidden_size: D; 0 if the configuration does not tell.
        vocabulary: V; 0 likewise.
        stop_ids: Tokens that end a text.
        has_tokenizer: Whether the folder has one.
        prefill_step_size: Prompt tokens a chunk, by default.
        layer_paths: The module path of every layer of the whole model.
        modules: Path and class name of every module of the whole model.
        attends: Where modules call mlx-lm's shared attention function: their paths with ``.sdpa`` behind.
        order: Module paths, and those of attention, in the order in which one pass first calls them.
        parameters: Names of the parameters that this rank holds.
        split_reason: Why the cuts are not where an even split would have them; empty if they are.
        cuts: Where the model may be cut.
        adapter: The adapter's folder on this host; empty without one.
        trusted: Whether code from the model's folder was allowed to run.
        code: The file under work that builds the model, on the notebook's host; empty without one.
        taken_over: How many of its parameters were in memory already when the code was read again.
    """

    name: str
    dtype_wish: str | None
    rank: int
    layers: tuple[int, int]
    num_layers: int
    host: str
    weight_bytes: int
    load_s: float
    dtype: str
    folder: str
    hidden_size: int
    vocabulary: int
    stop_ids: tuple[int, ...]
    has_tokenizer: bool
    prefill_step_size: int
    layer_paths: tuple[str, ...]
    modules: tuple[tuple[str, str], ...]
    order: tuple[str, ...]
    parameters: tuple[str, ...]
    split_reason: str = ""
    cuts: LegalCuts | None = None
    adapter: str = ""
    trusted: bool = False
    attends: tuple[str, ...] = ()
    code: str = ""
    taken_over: int = 0

    @property
    def places(self) -> tuple[str, ...]:
        """The paths that sites are made of: every module's, and those of attention in them."""
        return (*(path for path, _ in self.modules), *self.attends)
