"""What lies in the store and may never change again: segments and manifests under their keys, their order, a replica between two epochs.

Used by the simulation's oracle, which tells it of every writing call that has had its effect. It knows the rules of the names (R4, R5) and
that a replica which says that an epoch is applied is not written to (R7), and nothing of daemons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from replication.epoch_manifest import decode_unverified_manifest, manifest_hash
from replication.identifiers import BatchKey, EpochId, EpochKey
from replication.store_layout import SEGMENT_TAG_METADATA, parse_epoch_blob_name, segment_name


class StoreBroken(AssertionError):
    """The store holds what no order of steps may lead to."""


@dataclass(slots=True)
class StorePromises:
    """``is_over`` tells of an epoch that nothing can count for any more: what arrives late for it decides nothing."""

    is_over: Callable[[EpochKey], bool]
    contents: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    decided: dict[EpochKey, bytes] = field(default_factory=dict)
    """Which manifest was first of its epoch."""
    points: set[tuple[str, int, int]] = field(default_factory=set)
    """(disk, generation, epoch) of those that are points."""
    put_back: bool = False
    """Since then, who believes in the newer one puts what does not fit, until that is noticed."""

    def was_put_back(self) -> None:
        """An older copy took the store's place."""
        self.put_back = True
        self.points.clear()

    def put(self, name: str, content: bytes, metadata: Mapping[str, str]) -> None:
        """:raises StoreBroken: if something else was there, or if a manifest comes before what it stands on."""
        key = parse_epoch_blob_name(name)
        if key is None or self.put_back:
            return
        if self.contents.setdefault(name, content) != content:
            raise StoreBroken(f"{name} is replaced by other content")
        self.tags[name] = metadata.get(SEGMENT_TAG_METADATA, "")
        if not isinstance(key, BatchKey) and not self.is_over(key):
            self._judge_manifest(key, content)

    def deleted(self, name: str) -> None:
        self.contents.pop(name, None)
        self.tags.pop(name, None)

    def _judge_manifest(self, key: EpochKey, content: bytes) -> None:
        manifest = decode_unverified_manifest(content, expected=key)
        for segment in manifest.segments:
            stored = self.tags.get(segment_name(manifest.batch_key(segment)))
            if stored != segment.tag.hex():
                raise StoreBroken(f"the manifest of {key} names batch {segment.batch}, of which the store has {stored}")
        before = EpochKey(key.disk, key.generation, EpochId(key.epoch - 1)) if key.epoch > 1 else None
        if before is not None and self.decided.get(before) != manifest.previous_hash:
            raise StoreBroken(f"the manifest of {key} does not chain to what decided the epoch before")
        self.decided.setdefault(key, manifest_hash(content))
        if manifest.cut is not None:
            self.points.add((key.disk, key.generation, key.epoch))
