"""A protected item at work: journals, disk sessions and their supervision, consistent points, cutover."""
