"""An installer with the real script and a payload of a few bytes. Called by the tests of what appliances offer."""

from __future__ import annotations

from pathlib import Path

from deploy.packaging.agent_installer import make_installer
from deploy.packaging.program_tree import ProgramTree


def little_installer(
    directory: Path,
    version: str = "1.0.0",
    architecture: str = "x86_64",
    glibc: str = "2.36",
    content: str = "programs",
) -> Path:
    """Written into ``directory``; its name is that of a real one."""
    tree = directory / f".tree-{version}-{architecture}"
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "file").write_text(content)
    return make_installer(ProgramTree(tree, version, architecture, glibc, "3.11"), directory, 1)
