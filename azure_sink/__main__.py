"""``python -m azure_sink``: the sink's command line. Called by the console script ``azure-sink``."""

from __future__ import annotations

from azure_sink.cli import main

if __name__ == "__main__":
    main()
