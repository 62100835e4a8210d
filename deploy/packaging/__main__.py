"""``python -m deploy.packaging``: builds the agent's installer and the Debian packages into one directory.

Called by ``make installers``. Exit codes: 0 built, 1 not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deploy.packaging.agent_installer import make_installer
from deploy.packaging.debian_packages import make_packages
from deploy.packaging.failure import PackagingFailure
from deploy.packaging.program_tree import REPOSITORY, make_agent_tree, make_tree, source_version, with_version


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m deploy.packaging", description=__doc__)
    options.add_argument("--out", type=Path, default=REPOSITORY / "dist", help="where the files go (default: dist)")
    options.add_argument("--version", default=source_version(), help="another version than that of the source")
    options.add_argument("--only", choices=("installer", "packages"), help="one kind alone")
    given = options.parse_args()
    try:
        for path in build({given.version: given.out.resolve()}, only=given.only):
            print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path}")
    except (PackagingFailure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        hint = getattr(error, "hint", "")
        if hint:
            print(f"hint:  {hint}", file=sys.stderr)
        return 1
    return 0


def build(versions: Mapping[str, Path], *, only: str | None = None, compression: int = 6) -> list[Path]:
    """Everything, or ``only`` the installer or the packages, under each of ``versions`` into its directory; the paths of what was made.

    More than one version is of use to tests alone: the programs are the same, but for what they say of themselves.
    """
    missing = [program for program in ("patchelf", "dpkg-deb") if shutil.which(program) is None]
    if missing:
        raise PackagingFailure(
            f"cannot build: there is no {missing[0]}", hint=f"apt-get install -y {' '.join(missing)}"
        )
    made = []
    for out in versions.values():
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="blockferry-packages-", dir=next(iter(versions.values()))) as scratch:
        whole = make_tree(Path(scratch) / "programs", next(iter(versions)))
        agent = make_agent_tree(whole, Path(scratch) / "agent")
        for version, out in versions.items():
            whole, agent = with_version(whole, version), with_version(agent, version)
            print(f"programs: {version}, {whole.architecture}, Python {whole.interpreter}, glibc {whole.oldest_glibc}")
            if only != "packages":
                made.append(make_installer(agent, out, compression))
            if only != "installer":
                made.extend(make_packages(whole, out, compression))
    return made


if __name__ == "__main__":
    sys.exit(main())
