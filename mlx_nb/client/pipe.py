"""A model that is loaded over the ranks of a cluster."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client import prompt_cache
from mlx_nb.client.background import BackgroundRun
from mlx_nb.client.breakpoints import Breakpoint, Breakpoints
from mlx_nb.client.current import current
from mlx_nb.client.generation import Generation, Piece
from mlx_nb.client.loaded_model import LoadedModel
from mlx_nb.client.patching import Patch, Patches
from mlx_nb.client.processors import read_options
from mlx_nb.client.prompts import are_several
from mlx_nb.client.several import generate_several
from mlx_nb.client.streaming import FreeRun
from mlx_nb.shared.capture import BUDGET_BYTES
from mlx_nb.shared.code_file import read_code
from mlx_nb.shared.errors import (
    MlxNbError,
    OptionError,
)
from mlx_nb.shared.kv_report import KVReport
from mlx_nb.shared.loaded import LoadedShard
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.patches import TokenWish
from mlx_nb.shared.request import GenerateOptions, Prompt, RunRequest, check_for_model, options_from

if TYPE_CHECKING:
    from mlx_nb.client.breaking_run import BreakingRun
    from mlx_nb.client.chat import Chat
    from mlx_nb.client.cluster import Cluster
    from mlx_nb.client.debugger import Debugger
    from mlx_nb.client.faults import Fault
    from mlx_nb.client.kv import KVCaches
    from mlx_nb.client.remote import OnEvent
    from mlx_nb.client.trace import Trace
    from mlx_nb.client.tracing import LiveTrace, Sites
    from mlx_nb.shared.diff_report import DiffReport
    from mlx_nb.shared.findings import CheckReport
    from mlx_nb.shared.lens import Lens


UNLOAD_TIMEOUT_S = 30.0


class Pipe(LoadedModel):
    """A model over ranks: generate with it, or step through it.

    Made by `Cluster.load`. Two pipes may stand side by side in one cluster.

    Attributes:
        cluster: Where it lives.
        name: The model as it was asked for.
        plan: Which rank holds which layers.
        path: The model's folder, on rank 0's host.
        adapter_path: The adapter's folder there; None without one.
        dtype: What the ranks compute in.
        last: The last run's `Generation`, interrupted ones too, or several prompts' list; None before the first.
        breakpoints: Where its runs stand still; set with `break_at`.
        patches: What changes values in its runs; made with `patch`.
        tracing: The trace that records its runs now; None for none.
        fault_count: How many faults have been put in so far.
        reloads: How often its code was read again.
    """

    def __init__(self, cluster: "Cluster", name: str, wishes: dict[str, Any], why_so: str = "") -> None:
        """For `Cluster.load`; `load_there` does the work. `why_so` says why the layers are divided as wished."""
        super().__init__(cluster, name, wishes, why_so)
        self.breakpoints = Breakpoints(self)
        self.patches = Patches(self)
        self.tracing: LiveTrace | None = None
        self.fault_count = self.reloads = 0
        self._runs: list[BackgroundRun] = []
        self._free: FreeRun | None = None

    def load_there(self, on_event: "OnEvent | None" = None) -> "Pipe":
        """Load every rank's share; also after the cluster was restarted.

        Args:
            on_event: Gets each rank's progress events: ``stage``, ``done``, ``total``.

        Raises:
            MlxNbError: The model, its weights or the split cannot be used; nothing is loaded then.
        """
        remote = self.cluster.remote
        try:
            remote.call_all("connect")
            wishes = dict(self._wishes)
            if wishes.get("code"):  # as it is now, also after a restart
                wishes["code"] = read_code(wishes["code"])
            pending = self.submit_all("load", self.name, on_event=on_event, **wishes)
            self._shards = remote.wait(pending)
        except BaseException:
            if not remote.ended and not remote.out_of_reach():
                with suppress(MlxNbError):  # what went wrong first is what the user needs to read
                    remote.call_all("unload", self.pipe_id, timeout_s=UNLOAD_TIMEOUT_S)
            raise
        self._unloaded = False
        self.plan = self._make_plan()
        self.patches.renew()
        self._enter()
        return self

    @classmethod
    def find_all(cls, cluster: "Cluster") -> "list[Pipe]":
        """The models that the ranks of a cluster hold already; what an attaching kernel asks."""
        by_rank: list[dict[str, LoadedShard]] = cluster.remote.call_all("loaded")
        for pipe_id, first in by_rank[0].items():
            shards = [held[pipe_id] for held in by_rank if pipe_id in held]
            counts = [shard.layers[1] - shard.layers[0] for shard in shards]
            wishes = {
                "ranks": len(shards),
                "split": counts,
                "dtype": first.dtype_wish,
                "adapter_path": first.adapter or None,
                "trust_remote_code": first.trusted,
                "code": first.code or None,
            }
            pipe = cls(cluster, first.name, wishes)
            pipe.pipe_id, pipe._shards, pipe._found = pipe_id, shards, True
            pipe.plan = pipe._make_plan()
            pipe._enter()
        return cluster.pipes

    def _enter(self) -> None:
        """Stand among the cluster's pipes, and be the current one."""
        if self not in self.cluster.pipes:
            self.cluster.pipes.append(self)
        current.pipe = self

    def free_run(self, name: str, run: "RunRequest | int") -> FreeRun:
        """Follow a call that drives a run, new or open under that id, to its end on every rank."""
        assert self.last is not None  # whoever starts a run has put it there
        run_id = run if isinstance(run, int) else run.run_id
        self._free = FreeRun(
            self.cluster.remote,
            self.last,
            run_id,
            lambda take: self.submit_all(name, run, on_event=take),
            lambda take, paused_s: self.submit_all("finish", run_id, paused_s, on_event=take),
            lambda: self.call_all("close_run", run_id),
        )
        return self._free

    # Free runs ------------------------------------------------------------------------------------

    def generate(self, prompt: Prompt | Sequence[str], **options: Any) -> Any:
        """Generate to the end.

        Args:
            prompt: A string (the chat template is applied unless ``raw=True``), chat messages, or token ids; or a
                list of any of these, which run at once, padded on the left: each row as it would be alone.
            **options: As `GenerateOptions`; and ``prompt_cache``, a file or a `PromptCache`, after whose tokens
                one prompt is fed.

        Returns:
            A `Generation`; a list of them for several prompts.

        Raises:
            KeyboardInterrupt: It was interrupted; `last` has the text so far.
            OptionError: The model's KV caches cannot hold several prompts at once, or an option is wrong.
            MlxNbError: The prompt is wrong, or the run failed.
        """
        if are_several(prompt):
            return generate_several(self, list(prompt), options)
        for _ in self.stream(prompt, **options):  # type: ignore[arg-type]
            pass
        return self.last

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        """Generate piece by piece; leaving the loop stops the run. Arguments and errors as `generate`."""
        run = self.begin(prompt, **options)
        for piece in run.pieces():
            if piece is not None:
                yield piece

    def begin(self, prompt: Prompt, **options: Any) -> "FreeRun | BreakingRun":
        """Start a free run; its `pieces` follow it. Arguments and errors as `generate`."""
        return self.begin_request(self.request_with(prompt, options), prompt)

    def begin_request(self, request: RunRequest, prompt: Prompt) -> "FreeRun | BreakingRun":
        """Start a free run that has been put together already."""
        self.last = Generation(list(request.tokens), reused=request.reused)
        if self.breakpoints.armed():
            from mlx_nb.client.breaking_run import BreakingRun  # it imports this module

            return BreakingRun(self, request, self.last, prompt)
        return self.free_run("generate", request)

    def chat(self, system: str | None = None, **options: Any) -> "Chat":
        """A conversation whose KV caches stay on the ranks: each turn feeds only what is new.

        Args:
            system: The first message, for the model alone.
            **options: As `generate`, for every turn.

        Raises:
            PromptError: The model's folder has no tokenizer.
            OptionError: An option is wrong.
        """
        from mlx_nb.client.chat import Chat  # it imports this module

        return Chat(self, system, options)

    def start(self, prompt: Prompt, **options: Any) -> BackgroundRun:
        """Generate in the background; arguments and errors as `generate`.

        Several runs take turns, in the order of their start. A `generate` or a stepper meanwhile goes first: the
        run in the background stands still for so long, and then goes on by itself. Breakpoints do not stop it.
        """
        request = self.request_with(prompt, options)
        self.last = Generation(list(request.tokens), reused=request.reused)
        run = BackgroundRun(self, request, self.last)
        self._runs = [*(one for one in self._runs if not one.done), run]
        return run

    @property
    def under_way(self) -> "list[FreeRun | BackgroundRun]":
        """The runs that have begun and not ended: one that a cell waits for, those in the background."""
        free = [self._free] if self._free is not None and self._free.state in ("running", "paused") else []
        return [*free, *(run for run in self._runs if not run.done)]

    def pause(self) -> bool:
        """Let every run under way stand still, also one that a cell waits for: for views and other threads.

        Returns:
            Whether any was under way.
        """
        return bool([run.pause() for run in self.under_way])

    def resume(self) -> bool:
        """Let the runs go on that were paused. Returns whether any was."""
        return bool([run.resume() for run in self.under_way if run.state == "paused"])

    def stop_runs(self, *, wait: bool = True) -> int:
        """Stop every run in the background, and one that is paused; what they have produced so far stays.

        Returns:
            How many there were.
        """
        open_ones = [run for run in self._runs if not run.done]
        for run in open_ones:
            run.stop(wait=wait)
        if self._free is None or self._free.state != "paused":
            return len(open_ones)
        self._free.stop()
        return len(open_ones) + 1

    def logits(self, prompt: Prompt, chunk: int | None = None, *, raw: bool = False) -> np.ndarray:
        """The logits after every token of a prompt, fed through the KV cache.

        Args:
            prompt: As for `generate`.
            chunk: Tokens a chunk; None takes the default.
            raw: Without the chat template.

        Shapes:
            returned: ``[L, V]`` float32.

        Raises:
            TransferTooLargeError: They are over 64 MiB.
        """
        checked = options_from({"prefill_step_size": chunk, "raw": raw})
        request = self.request(prompt, checked, kind="logits")
        outcomes: list[Outcome] = self.call_all("generate", request)
        logits = outcomes[-1].logits
        if logits is None:
            raise KeyboardInterrupt
        return logits

    def request(self, prompt: Prompt, options: GenerateOptions, kind: str = "generate") -> RunRequest:
        """A run as it is sent to every rank, under a new id."""
        first = self._shards[0]
        check_for_model(options, vocabulary=first.vocabulary, has_tokenizer=first.has_tokenizer)
        ids = self.encode(prompt, raw=options.raw)
        # A message's tag: positive, and the same on every rank. Random, since several kernels may attach.
        run_id = secrets.randbelow(2**30 - 1) + 1
        return RunRequest(
            run_id=run_id,
            tokens=tuple(ids),
            options=options,
            kind=kind,
            stop_ids=first.stop_ids,
            trace=self.tracing.wish(ids) if self.tracing is not None else None,
        )

    def request_with(self, prompt: Prompt, options: dict[str, Any], kind: str = "generate") -> RunRequest:
        """A run out of keyword arguments, which may go on with a prompt cache."""
        source = options.pop("prompt_cache", None)
        request = self.request(prompt, read_options(options), kind)
        return prompt_cache.after(self, request, source) if source is not None else request

    def save_prompt_cache(self, path: "str | os.PathLike[str]") -> Path:
        """Save the last run's KV caches in one file, in mlx-lm's format; any split of the model can load it.

        They hold the prompt and the answer but for its last token, which was not fed. To save a prompt alone,
        generate one token.

        Args:
            path: On rank 0's host; ``.safetensors`` is added if need be.

        Returns:
            The file.

        Raises:
            PromptCacheError: There is no run, or the file cannot be written.
        """
        self._check()
        return prompt_cache.save(self, path)

    def load_prompt_cache(self, path: "str | os.PathLike[str]") -> prompt_cache.PromptCache:
        """KV caches out of a file that `save_prompt_cache` or mlx-lm has written.

        Raises:
            PromptCacheError: There is no such file, it is damaged, or it was made with another model.
        """
        self._check()
        return prompt_cache.load(self, path)

    def kv_cache(self) -> "KVCaches":
        """The KV caches of the run that stands in the stepper, or of one in the background, or else of the last.

        Prints as a table; ``kv[17].keys[0, 1]`` fetches a slice.
        """
        from mlx_nb.client.kv import KVCaches

        standing = current.dbg
        mine = standing is not None and standing.pipe is self and not standing.closed
        under_way = [run.run_id for run in self.under_way if run.state in ("running", "paused")]
        run_id = standing.run_id if mine else under_way[0] if under_way else None
        parts: list[KVReport] = self.call_all("kv_report", run_id)
        cut_short = any(part.cut_short for part in parts)
        entries = tuple(entry for part in parts for entry in part.entries)
        stands = parts[-1].standing
        if mine and stands:  # the ranks behind it may not have begun this pass
            stands = parts[max(standing.position.rank, 0)].standing or stands
        return KVCaches(self, replace(parts[-1], entries=entries, cut_short=cut_short, standing=stands))

    # Stepping -------------------------------------------------------------------------------------

    def debug(self, prompt: Prompt, **options: Any) -> "Debugger":
        """Stand before the embedding of a prompt's first pass. A second one closes the first, with a note.

        After a ``prompt_cache`` that is the first pass behind what it holds; `restart` feeds all of it anew.

        Raises:
            MlxNbError: The prompt or an option is wrong.
        """
        from mlx_nb.client.debugger import Debugger  # it imports this module

        open_one = current.dbg
        request = self.request_with(prompt, options)
        note = ""
        if open_one is not None and not open_one.closed:
            note = f"The stepper that stood at {open_one.position.where} was closed."
            open_one.close()
        self.last = Generation(list(request.tokens), reused=request.reused)
        debugger = Debugger(self, request, self.last, prompt, note=note)
        current.dbg = debugger
        return debugger

    def patch(self, site: str, what: Any, tokens: TokenWish = None, how: str = "replace") -> Patch:
        """Change the first array at a site, on whichever rank owns it, in steps and in free runs.

        A context manager: ``with pipe.patch("layers.3.mlp_out", 0): pipe.generate(…)``. Without ``with`` it holds
        until its `remove`.

        Args:
            site: A site, an alias or a glob.
            what: A number or an array that broadcasts (0 ablates), a capture, or a function that gets the mx.array on
                its rank and returns one of its shape. An array with many tokens is for tokens 0 and on.
            tokens: A position in the sequence, several, or a slice; None for all.
            how: ``replace``, ``add`` or ``scale`` with the number or array.

        Raises:
            SiteError: The model has no such site.
            OptionError: It is nothing that can travel.
        """
        self._check()
        return self.patches.add(site, what, tokens, how)

    def load_patch(self, path: str) -> Patch:
        """A patch from its files, as `Patch.save` has written them.

        Raises:
            OptionError: They cannot be read.
            SiteError: This model has no such site.
        """
        self._check()
        return self.patches.load(path)

    def pm(self) -> "Debugger":
        """Stand where the last failed run raised, every rank as it was then; as `pdb.pm`, also after a free run.

        Raises:
            RunError: No forward pass has raised.
        """
        from mlx_nb.client.postmortem import post_mortem  # it imports this module

        self._check()
        return post_mortem(self)

    def break_at(
        self,
        site: str | None = None,
        when: str | None = None,
        rank: int | None = None,
        token: int | None = None,
        *,
        once: bool = False,
        ignore: int = 0,
    ) -> Breakpoint:
        """Let every run of this pipe, stepped or free, stand still at a site.

        A free run that meets one returns with ``gen.state == "stopped"``; `mlx_nb.current.dbg` stands
        there, and its `run()` finishes the same `gen`. While one is armed, chunks of a prompt do not overlap.

        Args:
            site: A site, an alias or a glob; None or ``*`` is the exit of every module.
            when: A condition, evaluated on the rank: ``nonfinite``, ``shape`` or ``dtype`` (another than at
                the last visit), or an expression over `min`, `max`, `mean`, `rms`, `absmax`, `nan`, `inf`,
                `shape`, `dtype`, `layer`, `token`, `value` and the model's own names: ``max > 100``.
            rank, token: Only on this rank; only in the pass that feeds this token.
            once: Delete it when it has stopped a run.
            ignore: Let so many hits pass first.

        Raises:
            SiteError: The model has no such site.
            OptionError: The condition is no expression, or a number is out of range.
        """
        return self.breakpoints.add(site, when, rank, token, once=once, ignore=ignore)

    def trace(
        self,
        prompt: Prompt | None = None,
        sites: "Sites" = "layers.*.resid_post",
        max_tokens: int = 0,
        *,
        budget_bytes: int = BUDGET_BYTES,
        **options: Any,
    ) -> "LiveTrace":
        """Record values while a prompt goes through, and while tokens are generated after it.

        ``trace["layers.3.resid_post"]`` is then a `Capture`. Without a prompt it is a context manager:
        ``with pipe.trace(sites=…) as trace: …`` records the runs inside, stepped ones too.

        Args:
            prompt: As for `generate`.
            sites: A site, an alias or a glob, several with commas between them, or a list.
            max_tokens: Tokens to generate; 0 feeds the prompt alone. The last token is sampled, not fed.
            budget_bytes: The most that a rank holds of this trace; all of this pipe's together may take the largest
                of their budgets. The least recently used values go first.
            **options: As `generate`.

        Raises:
            SiteError: The model has no such site.
            OptionError: An option is wrong, or a trace of this pipe is recording already.
            MlxNbError: As `generate`.
        """
        from mlx_nb.client.tracing import LiveTrace

        self._check()
        trace = LiveTrace(self, sites, budget_bytes)
        if prompt is not None:
            trace.run(prompt, max_tokens, options)
        elif options or max_tokens:
            raise OptionError(
                "Without a prompt a trace runs nothing, so it takes no max_tokens and no options of a run.",
                "Type: with pipe.trace(sites=…) as trace: pipe.generate(…, max_tokens=16)",
            )
        return trace

    def lens(
        self,
        prompt: "Prompt | Trace",
        tokens: "int | list[int] | range | None" = None,
        top: int = 10,
        max_tokens: int = 0,
        **options: Any,
    ) -> "Lens":
        """What the model would say if it ended after each layer: the logit lens.

        Every rank keeps what its layers return; at the positions asked for these go to the last rank, whose
        own norm and head read them. The last layer's row is the model's own answer.

        Args:
            prompt: As for `generate`; or a trace of ``layers.*.resid_post``.
            tokens: Positions in the sequence, negative ones from its end; None takes the last twelve.
            top: How many tokens of each.
            max_tokens: Tokens to generate first; 0 feeds the prompt alone.
            **options: As `generate`.

        Raises:
            OptionError: A position was not fed, or the head cannot read what this model's layers return.
            MlxNbError: As `trace`.
        """
        from mlx_nb.client.lensing import look

        self._check()
        return look(self, prompt, tokens, top, max_tokens, options)

    def diff(
        self,
        other: Any,
        prompt: Prompt | None = None,
        sites: "Sites" = "layers.*",
        *,
        forced: bool = True,
        tol: float | None = None,
        **options: Any,
    ) -> "DiffReport":
        """Feed the same tokens to another model, and see where the two part.

        Args:
            other: Another pipe (of another split, dtype or checkpoint), a trace, or `mlx_nb.reference()`: the model
                in one process, fresh from its files.
            prompt: As for `generate`; None takes the one of a trace.
            sites: What is compared: ``layers.*`` is what each layer returns; what lies before the first and behind the
                last is compared besides (embedding, norm, head, logits).
            forced: Whether to run once more with each layer given the other's input, so that errors do not add up.
            tol: The relative distance that is let pass; None takes it from the dtype.
            **options: As `trace`. The prompt is fed in chunks of 16 unless ``prefill_step_size`` says otherwise.

        Returns:
            ``.ok``, ``.first``, ``.worst``, ``.table()``; true where both are the same.

        Raises:
            OptionError: There is nothing to compare, or an option is wrong.
            MlxNbError: As `trace`.
        """
        from mlx_nb.client.diffing import diff

        self._check()
        return diff(self, other, prompt, sites, forced, tol, options)

    def check(self, prompt: Prompt | None = None, **options: Any) -> "CheckReport":
        """Check every rank, in a short run of its own; `last` and its KV caches stay as they are.

        Every weight is compared with its file, every module's result with what a fresh one makes of the same, KV
        caches with what was written; tokens, positions, hops and offsets between the ranks; NaN; flat logits.

        Args:
            prompt: As for `generate`; None takes ten ids from all over the vocabulary.
            **options: As `generate`: ``max_kv_size`` to check rings. 2 tokens and chunks of 5 unless said otherwise.

        Returns:
            What was found; true where nothing was.

        Raises:
            KeyboardInterrupt: It was interrupted.
            MlxNbError: As `generate`.
        """
        from mlx_nb.client.checking import check

        self._check()
        return check(self, prompt, options)

    def fault(
        self, name: str, rank: int | None = None, layer: int | None = None, by: float | None = None
    ) -> "Fault":
        """Put a fault in, to see how it shows; `mlx_nb.faults()` lists them.

        A context manager: ``with pipe.fault("kv_offset", rank=1, by=-1): pipe.check()``. Without ``with`` it stays
        in until its `remove`.

        Args:
            name: Which.
            rank: Where; rank 1 unless a layer is named.
            layer: The layer; None takes the first on the rank that has what the fault strikes, or all.
            by: The fault's number.

        Raises:
            OptionError: There is no such fault, rank or layer, or nothing there has what it strikes.
        """
        from mlx_nb.client.faults import Fault

        self._check()
        return Fault(self, name, rank, layer, by)

    def show(self, view: str = "step", argument: Any = "", **wishes: Any) -> None:
        """Open a view in the notebook.

        Args:
            view: ``step``, ``plan``, ``kv``, ``shapes``, ``tokens``, ``cluster``, ``timeline``, ``lens``,
                ``tensor``, ``stats``, ``attention``, ``diff``.
            argument: The prompt of ``tokens``; a site of ``shapes`` or ``tensor``; a timeline, or a run that has one
                (the last); a prompt or a trace for ``lens``, ``stats`` and ``attention`` (the last run); for ``tensor`` also
                ``trace[…]``, ``kv[17].keys``, or nothing: what stands in the stepper.
            **wishes: For ``lens``, as `lens`. For ``stats``: ``stat`` (rms, absmax, std, nonfinite), ``sites``, and as `trace`.
                For ``attention``: ``layer``, ``head``, and as `trace`. For ``diff``, whose argument is a report, another model
                or a prompt: as `diff`.

        Raises:
            OptionError: There is no such view, or it has nothing to show.
        """
        from mlx_nb.client.show import show_view  # IPython's display, which a script does not need

        show_view(self, view, argument, **wishes)

    # End ------------------------------------------------------------------------------------------

    def reload(self, code: str | Path | None = None) -> "Pipe":
        """Read the model's file again, on all ranks or on none; the weights stay in memory.

        Traces, patches and breakpoints stay; faults, runs and KV caches of the code before go, and a stepper begins
        again with ``dbg.restart()``. What the code makes of tensors at load (`sanitize`) is made again.

        Args:
            code: Another file; None takes the one before.

        Returns:
            The pipe.

        Raises:
            OptionError: It was not loaded with ``code=``, or there is no such file.
            CodeError: The file does not run, or does not fit the weights; the code before goes on.
            PlanError: The layers can no longer be divided so.
        """
        from mlx_nb.client.reloading import reload

        self._check()
        self._shards = reload(self, code)
        self._wishes["code"] = self.code_path
        self.plan = self._make_plan()
        self.patches.renew()
        return self

    def unload(self) -> None:
        """Free the ranks' memory; does nothing the second time."""
        if not self.loaded:
            return
        self.stop_runs()
        self._unloaded = True
        if current.dbg is not None and current.dbg.pipe is self:
            current.dbg.close()
        self.call_all("unload")
        self.cluster.pipes.remove(self)
        if current.pipe is self:
            current.pipe = self.cluster.pipes[-1] if self.cluster.pipes else None
