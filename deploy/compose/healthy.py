"""Whether a daemon's health page says that nothing has failed: the health check of compose.yaml. ``python healthy.py PORT``.

Called by the container engine inside each daemon's container. Exit code 0 for status 200, else 1 with the reason.
"""

from __future__ import annotations

import sys
import urllib.request
from typing import Final

TIMEOUT_S: Final = 5.0


def main() -> None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/healthz", timeout=TIMEOUT_S) as answer:
            print(answer.read().decode())
    except OSError as error:
        sys.exit(f"not healthy: {error}")


if __name__ == "__main__":
    main()
