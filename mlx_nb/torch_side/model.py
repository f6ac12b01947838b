"""A Hugging Face transformers model in torch, as a program: it is fed token ids, and writes what its modules make.

``python -m mlx_nb.torch_side.model FOLDER`` reads a request in JSON from each line of its input and answers each
with a line. What is recorded goes into a file, which `mlx_nb.open_trace` opens.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_nb.shared.capture import PassRecord, SiteRecord
from mlx_nb.shared.errors import MlxNbError, ModelError, OptionError, RemoteCodeError, WeightsError
from mlx_nb.shared.position import INPUT, OUTPUT
from mlx_nb.shared.trace_format import KEY, header_text, tensor_name

INSTALL = "Type: %pip install 'mlx-nb[torch]' (torch for CPU is enough), then the same again."


def main(argv: Sequence[str] | None = None) -> int:
    """Load, then answer until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--trust-remote-code", action="store_true")
    found = parser.parse_args(argv)
    # Whatever torch and transformers print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        model = TorchModel(found.folder, found.dtype, trusted=found.trust_remote_code)
        answer(kind="ready", **model.description())
        for line in sys.stdin:
            request = json.loads(line)
            answer(kind="done", token_ids=model.record(**request))
    except MlxNbError as error:
        answer(kind="error", **{"class": type(error).__name__}, problem=error.problem, fix=error.fix)
        return 1
    return 0


class TorchModel:
    """A model that transformers runs."""

    def __init__(self, folder: str, dtype: str, *, trusted: bool) -> None:
        """Load it.

        Raises:
            OptionError: torch or transformers is not installed, or there is no such dtype.
            RemoteCodeError: It is built by code of its own, which may not run.
            WeightsError: The files lack tensors that transformers would make up.
            ModelError: transformers cannot build it.
        """
        torch, transformers = _installed()
        if not hasattr(torch, dtype):
            raise OptionError(f"torch has no dtype '{dtype}'.", "Type: dtype='float32'")
        self._torch = torch
        self._check_folder(folder, trusted=trusted)
        try:
            self.model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="eager",  # the same arithmetic as on paper
                trust_remote_code=trusted,
                output_loading_info=True,
            )
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            raise ModelError(
                f"transformers cannot load {folder}: {type(error).__name__}: {text.rstrip('.')}.",
                "Give the checkpoint that the model came from: mlx_nb.reference('org/name', kind='transformers')",
            ) from error
        self.model.eval()
        wrong = [*sorted(info["missing_keys"]), *(str(key[0]) for key in info["mismatched_keys"])]
        if wrong:  # transformers fills these with random numbers, and says so in a warning
            raise WeightsError(
                f"{folder} lacks {len(wrong)} tensors that transformers wants ({', '.join(wrong[:2])} …): it was converted.",
                "Give the checkpoint that it came from: mlx_nb.reference('org/name', kind='transformers')",
            )
        self.names = dict(self.model.named_modules())
        self.layers = self._layer_paths()

    @staticmethod
    def _check_folder(folder: str, *, trusted: bool) -> None:
        path = Path(folder) / "config.json"
        if not path.is_file():
            return  # a Hugging Face id
        config = json.loads(path.read_bytes())
        if config.get("auto_map") and not trusted:
            raise RemoteCodeError(
                f"{folder} is built by code of its own for transformers.",
                "If you trust it, load the pipe with trust_remote_code=True.",
            )
        if "quantization" in config:
            raise ModelError(
                f"{folder} holds weights that mlx-lm has quantised, which transformers cannot read.",
                "Give the checkpoint that it came from: mlx_nb.reference('org/name', kind='transformers')",
            )

    def _layer_paths(self) -> list[str]:
        count = getattr(self.model.config.get_text_config(), "num_hidden_layers", 0)
        lists = [
            path
            for path, module in self.names.items()
            if isinstance(module, self._torch.nn.ModuleList) and len(module) == count
        ]
        if not lists:
            raise ModelError(
                f"transformers' {type(self.model).__name__} has no list of its {count} layers.",
                "Compare with the model in one process: mlx_nb.reference()",
            )
        first = min(lists, key=lambda path: path.count("."))
        return [f"{first}.{number}" for number in range(count)]

    def description(self) -> dict[str, Any]:
        """Its class, its modules and which of them are the layers."""
        return {
            "name": type(self.model).__name__,
            "modules": [path for path in self.names if path],
            "layers": self.layers,
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def record(
        self, ids: Sequence[int], sites: Mapping[str, str], layers: Mapping[str, int], max_tokens: int,
        stop_ids: Sequence[int], info: dict[str, Any], file: str,
    ) -> list[int]:  # fmt: skip
        """Feed a prompt whole, generate greedily, and write what the sites were.

        Args:
            ids: The prompt.
            sites: The site in the file, by the site here (``model.layers.0.output``; ``logits``).
            layers: The layer that a site in the file lies in.
            max_tokens: Tokens to generate; the last is sampled, not fed.
            stop_ids: Tokens that end the text.
            info: What the file says of the trace.
            file: Where it is written.

        Returns:
            The generated tokens.
        """
        torch = self._torch
        seen: dict[str, list[tuple[int, int, Any]]] = {}
        span = [0, len(ids)]

        def keep(site: str, value: Any) -> None:
            # A copy: models change arrays in place.
            if (array := self._first_tensor(value)) is not None:
                count = span[1] - span[0]
                if array.ndim == 2 and array.shape[0] == count and array.shape[1:] != (count,):
                    array = array[None]  # some routers take the tokens of all rows in one axis
                seen.setdefault(site, []).append((*span, array.detach().clone().contiguous()))

        made: list[int] = []
        with self._hooked(sites, keep), torch.no_grad():
            feed, past = torch.tensor([list(ids)]), None
            while True:
                output = self.model(input_ids=feed, past_key_values=past, use_cache=max_tokens > 0)
                if "logits" in sites:
                    keep(sites["logits"], output.logits)
                if len(made) >= max_tokens:
                    break
                made.append(int(output.logits[0, -1].argmax()))
                if made[-1] in stop_ids or len(made) >= max_tokens:
                    break
                past, feed = output.past_key_values, torch.tensor([[made[-1]]])
                span[:] = [span[1], span[1] + 1]
        self._write(seen, layers, info, file)
        return made

    def _first_tensor(self, value: Any) -> Any:
        """The first tensor in a return value."""
        if isinstance(value, self._torch.Tensor):
            return value
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, tuple | list):
            return next((found for one in value if (found := self._first_tensor(one)) is not None), None)
        return None

    @contextmanager
    def _hooked(self, sites: Mapping[str, str], keep: Callable[[str, Any], None]) -> Any:
        handles = []
        for site, name in sites.items():
            path, _, kind = site.rpartition(".")
            if kind == INPUT:
                handles.append(
                    self.names[path].register_forward_pre_hook(
                        lambda _module, args, kwargs, name=name: keep(name, (*args, *kwargs.values())),
                        with_kwargs=True,
                    )
                )
            elif kind == OUTPUT:
                handles.append(
                    self.names[path].register_forward_hook(
                        lambda _module, _args, value, name=name: keep(name, value)
                    )
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _write(
        self,
        seen: Mapping[str, list[tuple[int, int, Any]]],
        layers: Mapping[str, int],
        info: dict[str, Any],
        file: str,
    ) -> None:
        from safetensors.torch import save_file

        records, tensors = [], {}
        for site, values in seen.items():
            spans = [span[:2] for span in values]
            if len(set(spans)) < len(spans):
                continue  # called several times in one pass: nobody knows which is meant
            shape = tuple(values[0][2].shape)
            record = SiteRecord(
                run=0,
                site=site,
                call=0,
                rank=0,
                layer=layers.get(site, -1),
                dtype=str(values[0][2].dtype).removeprefix("torch."),
                axes=("B", "L", "D") if len(shape) == 3 and shape[1] == spans[0][1] else (),
                passes=tuple(
                    PassRecord(start=start, stop=stop, shape=tuple(array.shape), held=True)
                    for start, stop, array in values
                ),
            )
            records.append(record)
            for one, (_, _, array) in zip(record.passes, values, strict=True):
                tensors[tensor_name(record, one)] = array
        save_file(tensors, file, metadata={"format": "pt", KEY: header_text(info, records)})


def _installed() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise OptionError(
            f"A reference in torch needs {error.name}, which is not installed.", INSTALL
        ) from error
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


if __name__ == "__main__":
    sys.exit(main())
