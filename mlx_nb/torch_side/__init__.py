"""What runs in a process of its own beside the notebook: torch and transformers live here, and nothing of MLX."""
