"""Where a run stands, and what is there: the records that a stop sends to the notebook.

A stop's records are small (well under 64 KiB); the arrays themselves stay on their rank.
"""

from dataclasses import dataclass

from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.text import format_duration, format_number, format_shape, format_size, format_table

INPUT, OUTPUT, SEND, RECV = "input", "output", "send", "recv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One array in numbers.

    Attributes:
        shape: Its shape.
        axes: A letter per leading axis where it is known (STYLE.md's: B L S D H K V), else "".
        dtype: Its dtype, as MLX names it without the package: ``float32``.
        size_bytes: Bytes on its rank.
        min, max, mean, rms: Over the finite elements; NaN when there is none. Integer
            arrays have them too.
        min_at, max_at: The index of the first least and greatest finite element.
        nan, inf: How many elements are NaN, and infinite.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    dtype: str
    size_bytes: int
    min: float
    min_at: tuple[int, ...]
    mean: float
    rms: float
    max: float
    max_at: tuple[int, ...]
    nan: int
    inf: int

    @property
    def shape_text(self) -> str:
        return f"{format_shape(self.shape, self.axes)} {self.dtype}"

    @property
    def numbers_text(self) -> str:
        whole = "int" in self.dtype or self.dtype == "bool"
        least, most = (f"{v:.0f}" if whole and v == v else format_number(v) for v in (self.min, self.max))
        mean = "" if whole else f"  mean {format_number(self.mean)}"  # of token ids it says nothing
        text = f"min {least}{mean}  max {most}  NaN {self.nan}"
        return text + (f"  Inf {self.inf}" if self.inf else "")

    def __str__(self) -> str:
        return f"{self.shape_text}  {self.numbers_text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of the call that a run stands at, or one part of what it returned.

    Attributes:
        name: The parameter's name; ``out`` for a returned value.
        text: A short repr of what is not an array.
        summary: The numbers, if it is an array.
    """

    name: str
    text: str = ""
    summary: Summary | None = None

    def __str__(self) -> str:
        return f"{self.name}  {self.summary}" if self.summary else f"{self.name}={self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model's own code, around the line where the run stands.

    Attributes:
        path: The file, whole.
        function: The qualified name of the function, such as ``Attention.__call__``.
        line: The line that makes the call, counted from 1.
        last_line: The last line of that call, for one that spans several.
        first: The number of the first of `lines`.
        lines: The surrounding lines, without their line ends.
    """

    path: str
    function: str
    line: int
    last_line: int
    first: int
    lines: tuple[str, ...]

    @property
    def file(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def current(self) -> str:
        """The line where the run stands, stripped."""
        return self.lines[self.line - self.first].strip() if self.lines else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One module on the stack: its path in the model and its class."""

    path: str
    class_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KVOffset:
    """The KV cache of one layer on one rank, at a stop.

    Attributes:
        layer: The layer, numbered as in the whole model; -1 where entries and layers differ in number.
        class_name: mlx-lm's class.
        offset: Positions written so far; -1 for a class that counts none.
        written: Whether this pass has been written into it.
    """

    layer: LayerIndex
    class_name: str
    offset: int
    written: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankKV:
    """What one rank's KV caches hold, in the middle of a pass.

    Attributes:
        rank: The rank.
        offset: Positions that every layer of the rank has.
        pending: Tokens of this pass that are not written into all of its layers yet.
        layers_written: Layers that have this pass.
        layers: Layers of the rank.
    """

    rank: Rank
    offset: int
    pending: int = 0
    layers_written: int = 0
    layers: int = 0

    @property
    def text(self) -> str:
        """``37 written``, ``37 pending``, ``37 written + 1 pending``, or how many layers have the pending."""
        if not self.pending:
            return f"{self.offset} written"
        before = f"{self.offset} written + " if self.offset else ""
        share = (
            f" in {self.layers - self.layers_written} of {self.layers} layers" if self.layers_written else ""
        )
        return f"{before}{self.pending} pending{share}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """A value that crosses from one rank to the next.

    Attributes:
        source, target: The ranks.
        size_bytes: Bytes of all its arrays.
        seconds: From the send's start to the arrival, by the receiver's clock of waiting;
            0 while it is still on the sender.
    """

    source: Rank
    target: Rank
    size_bytes: int
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands, on one rank.

    Attributes:
        phase: ``prefill`` (one chunk of the prompt) or ``decode`` (one token).
        index: The pass, counted from 0 over the whole run.
        start, stop: The tokens of this pass, half-open, counted from the start of the sequence.
        rank: The rank that stands here.
        site: The dotted module path with ``.input`` or ``.output``; ``send`` or ``recv`` between ranks.
        kind: ``input``, ``output``, ``send`` or ``recv``.
        module: The module's path, empty between ranks.
        layer: The layer that this is inside of, -1 for none.
        depth: Modules on the stack below this one.
        call: Which call of this module in this pass, counted from 1 (RoPE is called twice).
        repeated: Whether to print the call's number (the module has been seen called more than once).
        args: The arguments at an entry; what was returned at an exit; what crosses at send and recv.
        stack: The modules from the model down to this one.
        source: The model's own code at the call, where it can be read.
        kv: The KV caches of this rank's layers.
        hop: The crossing, at a send or recv.
        ranks: The KV caches of every rank, as far as the notebook knows; empty on the rank itself.
        about: What happens here, as a sentence; empty where the view finds its own.
        tick: The stop's number on its rank in this pass, from 1: with `index` and `rank` it is the way back here.
    """

    phase: str
    index: int
    start: int
    stop: int
    rank: Rank
    site: str
    kind: str
    module: str
    layer: LayerIndex
    depth: int
    call: int = 1
    repeated: bool = False
    args: tuple[Argument, ...] = ()
    stack: tuple[Frame, ...] = ()
    source: Source | None = None
    kv: tuple[KVOffset, ...] = ()
    hop: Hop | None = None
    ranks: tuple[RankKV, ...] = ()
    about: str = ""
    tick: int = 0

    @property
    def summary(self) -> Summary | None:
        """The numbers of the first array here."""
        return next((arg.summary for arg in self.args if arg.summary), None)

    @property
    def where(self) -> str:
        """The first line that a position prints: ``prefill 0:37 · rank 1 · …``."""
        return f"{self.phase} {self.start}:{self.stop} · rank {self.rank} · {self.site}"

    @property
    def written(self) -> int:
        """Tokens that every KV cache of this rank with a count has; 0 with none."""
        offsets = [kv.offset for kv in self.kv if kv.offset >= 0]
        return min(offsets, default=0)

    def __str__(self) -> str:
        return "\n".join([self.where, *self.body_lines()])

    __repr__ = __str__

    def body_lines(self) -> list[str]:
        """The lines below the first: arguments, code, KV cache, hop."""
        lines = []
        arrays = [str(arg) for arg in self.args if arg.summary]
        plain = [str(arg) for arg in self.args if not arg.summary]
        for label, text in zip(
            ["args"] + [""] * 99, arrays + ([" ".join(plain)] if plain else []), strict=False
        ):
            lines.append([label if self.kind == INPUT else (label and "value"), text])
        if self.hop:
            time = f" · {format_duration(self.hop.seconds)}" if self.hop.seconds else ""
            size = format_size(self.hop.size_bytes)
            lines.append(["hop", f"rank {self.hop.source} → rank {self.hop.target} · {size}{time}"])
        if self.about:
            lines.append(["", self.about])
        if self.source:
            lines.append(["code", f"{self.source.file}:{self.source.line}  → {self.source.current}"])
        if self.ranks:
            lines.append(["kv", " · ".join(f"rank {kv.rank}: {kv.text}" for kv in self.ranks)])
        return format_table(lines).split("\n") if lines else []
