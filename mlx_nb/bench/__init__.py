"""Benchmarks: our ranks and their peers, in turn, in one session.

``mlx-nb bench`` in a terminal, ``%mlx_bench`` in a notebook, or:

>>> import mlx_nb.bench                                      # doctest: +SKIP
>>> report = mlx_nb.bench.run(["decode"], rounds=3)          # doctest: +SKIP
>>> print(report.to_markdown())                              # doctest: +SKIP
"""

from mlx_nb.bench.run import run
from mlx_nb.shared.bench_report import Report, Row, Target

__all__ = ["Report", "Row", "Target", "run"]
