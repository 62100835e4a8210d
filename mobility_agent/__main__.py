"""Entry point of ``mobility-agent`` and ``python -m mobility_agent``."""

from mobility_agent.cli import main

if __name__ == "__main__":
    main()
