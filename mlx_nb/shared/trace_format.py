"""How a trace lies in a safetensors file: the names of its tensors, and what its header says besides."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mlx_nb.shared.capture import PassRecord, SiteRecord

FORMAT = "mlx_nb trace 1"
KEY = "mlx_nb_trace"


def tensor_name(record: SiteRecord, one: PassRecord) -> str:
    """A pass's tensor in the file: ``model.layers.3.output@0``, with its run where there are several."""
    run = f"run{record.run}/" if record.run else ""
    rank = f"/rank{record.rank}" if "." not in record.site else ""
    return f"{run}{record.label}{rank}@{one.start}"


def header_text(info: dict[str, Any], records: Sequence[SiteRecord]) -> str:
    """What the header says under `KEY`: the trace without its values."""
    return json.dumps({"format": FORMAT, "info": info, "records": [asdict(record) for record in records]})
