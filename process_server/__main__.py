"""``process-server`` and ``python -m process_server``: called by the console script and by the service manager."""

from process_server.cli import main

if __name__ == "__main__":
    main()
