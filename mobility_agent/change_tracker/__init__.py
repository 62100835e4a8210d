"""Change trackers: what feeds the dirty bitmap of a disk. ``interface.py`` is the contract; one mechanism a module."""
