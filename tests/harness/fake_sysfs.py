"""A machine's block devices as a directory laid out like sysfs: for tests of the listing without the devices.

Called by unit tests. Devices are added with their attributes; links (class/block, dev/block, holders, slaves) are made as
the kernel makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class FakeSysfs:
    root: Path
    _minor: int = 0
    numbers: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for directory in ("class/block", "dev/block", "block", "devices"):
            (self.root / directory).mkdir(parents=True, exist_ok=True)

    def add(self, name: str, size_bytes: int, *, partition_of: str | None = None, **attributes: str) -> Path:
        """``attributes``: path below the device with "/" written as "__", such as queue__zoned="none"."""
        parent = self.root / "devices" if partition_of is None else self.directory(partition_of)
        directory = parent / name
        directory.mkdir()
        self._minor += 1
        self.numbers[name] = (8, self._minor)
        files = {"dev": f"8:{self._minor}", "size": str(size_bytes // 512), "ro": "0", "hidden": "0"}
        if partition_of is None:
            files |= {"queue/logical_block_size": "512", "queue/rotational": "0", "queue/zoned": "none"}
        else:
            files["partition"] = "1"
        files |= {key.replace("__", "/"): value for key, value in attributes.items()}
        for path, content in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(content + "\n")
        (self.root / "class/block" / name).symlink_to(directory)
        (self.root / "dev/block" / f"8:{self._minor}").symlink_to(directory)
        return directory

    def stack(self, upper: str, *lower: str) -> None:
        """``upper`` stands on ``lower``."""
        for name in lower:
            for directory, entry in (
                (self.directory(upper) / "slaves", name),
                (self.directory(name) / "holders", upper),
            ):
                directory.mkdir(exist_ok=True)
                (directory / entry).symlink_to(self.root / "class/block" / entry)

    def directory(self, name: str) -> Path:
        return (self.root / "class/block" / name).resolve()
