"""``python -m config_server``: the configuration server's command line. Called by the console script ``config-server``."""

from __future__ import annotations

from config_server.cli import main

if __name__ == "__main__":
    main()
