"""The agent's decisions as plain values and functions: no I/O, no clock, no randomness."""
