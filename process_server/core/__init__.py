"""Decisions of the process server as plain values and functions: no I/O, no clock, no randomness."""
