"""Quiescing: operator's hooks, and the freeze of file systems under an independent watchdog (rule R9)."""
