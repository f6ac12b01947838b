"""What mlx_nb is measured against. Each is a program of its own, so that nothing of it weighs on ours."""
