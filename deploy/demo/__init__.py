"""The demo: a whole site as separate processes, a live disk under load, kills, a drill, a cutover, and the proof. ``make demo``."""
