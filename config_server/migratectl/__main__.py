"""``python -m config_server.migratectl``. Called by the console script ``migratectl``."""

from __future__ import annotations

from config_server.migratectl.cli import main

if __name__ == "__main__":
    main()
