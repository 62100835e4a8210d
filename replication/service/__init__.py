"""What every daemon does the same way: start, stop, log, report health and metrics, serve HTTPS, answer with problem documents.

Called by each daemon's ``cli.py`` and ``daemon.py`` only.
"""
