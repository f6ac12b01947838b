"""Plain data that both processes know: stdlib and numpy only, no I/O, no globals."""
