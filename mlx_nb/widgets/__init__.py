"""The views: one anywidget class and one hand-written ES module each. They know only `mlx_nb.shared`."""
