"""What runs in the notebook kernel. Nothing here imports mlx, mlx_lm or mpi4py."""
