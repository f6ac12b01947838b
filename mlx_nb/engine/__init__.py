"""What runs on the ranks: mlx, mlx_lm and mpi4py live here, never a display or a widget.

Importing this package loads a fast BLAS before anything can import mlx (`blas.py` says why).
"""

from mlx_nb.engine import blas

blas.load()
