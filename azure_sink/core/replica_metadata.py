"""A replica's state as the metadata of its page blob, and back. Names are C# identifiers in lower case, values plain ASCII.

Called by ``replica_writer/replica_blob.py`` and wherever a snapshot is looked at: a snapshot takes over the blob's metadata, so each
one says which disk's cut it is.

    bfversion   1
    item        ITEM                          protected item
    sizebytes   N                             the source's size (the VHD's padding and footer are outside of it, R13)
    applied     GENERATION/EPOCH/HASH         the newest applied epoch and its manifest's hash
    cuttimens   N                             the agent's clock at that cut
    applying    EPOCH                         while an epoch is applied; beside ``closed``: the torn epoch
    opening     GENERATION/SIZE/ITEM          while a generation is opened
    closed      1                             the applied generation takes no further epoch
    point       CUT/ITEM/crash|app/-|final    the applied epoch is a point
    pointdisks  32 hex digits a disk, joined with commas
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Final

from azure_sink.core.replica_state import Opening, Phase, PointMark, Position, ReplicaState
from replication.errors import BlockferryError, PeerProtocolError
from replication.identifiers import CutId, DiskId, ItemId, parse_uuid

METADATA_VERSION: Final = "1"
SIZE_METADATA: Final = "sizebytes"
_HASH: Final = re.compile(r"[0-9a-f]{64}")


def encode_state(state: ReplicaState) -> dict[str, str]:
    """The metadata that says ``state``; POINT_DUE is said by ``point``."""
    metadata = {"bfversion": METADATA_VERSION, "item": state.item, SIZE_METADATA: str(state.size_bytes)}
    if state.was_written:
        metadata["applied"] = f"{state.applied}/{state.manifest_hash}"
        metadata["cuttimens"] = str(state.cut_time_ns)
    if state.applying_epoch is not None:
        metadata["applying"] = str(state.applying_epoch)
    if state.opening is not None:
        opening = state.opening
        metadata["opening"] = f"{opening.generation}/{opening.size_bytes}/{opening.item}"
    if state.phase is Phase.CLOSED:
        metadata["closed"] = "1"
    if state.point is not None:
        point = state.point
        consistency = "app" if point.app_consistent else "crash"
        metadata["point"] = f"{point.cut}/{point.item}/{consistency}/{'final' if point.final else '-'}"
        metadata["pointdisks"] = ",".join(uuid.UUID(disk).hex for disk in point.disks)
    return metadata


def decode_state(metadata: Mapping[str, str]) -> ReplicaState:
    """Parse a replica's or a snapshot's metadata. A point whose snapshot is not known to exist comes back as POINT_DUE.

    :raises PeerProtocolError: if it is not one that ``encode_state`` made.
    """
    known = {name.lower(): value for name, value in metadata.items()}
    if known.get("bfversion") != METADATA_VERSION:
        raise PeerProtocolError("cannot read a replica's metadata: its version is unknown")
    try:
        applied, manifest_hash = _parse_applied(known.get("applied"))
        state = ReplicaState(
            phase=_phase(known),
            item=ItemId(parse_uuid(known["item"], "item")),
            size_bytes=int(known[SIZE_METADATA]),
            applied=applied,
            manifest_hash=manifest_hash,
            cut_time_ns=int(known.get("cuttimens", "0")),
            applying_epoch=int(known["applying"]) if "applying" in known else None,
            opening=_parse_opening(known.get("opening")),
            point=_parse_point(known.get("point"), known.get("pointdisks", "")),
        )
    except (ValueError, KeyError, BlockferryError) as error:
        raise PeerProtocolError(f"cannot read a replica's metadata: {error}") from error
    return state


def _phase(known: Mapping[str, str]) -> Phase:
    for name, phase in (("opening", Phase.OPENING), ("closed", Phase.CLOSED), ("applying", Phase.APPLYING)):
        if name in known:
            return phase
    if "applied" not in known:
        return Phase.CREATED
    return Phase.POINT_DUE if "point" in known else Phase.SETTLED


def _parse_applied(text: str | None) -> tuple[Position, str]:
    if text is None:
        return Position(0, 0), "0" * 64
    generation, epoch, manifest_hash = text.split("/")
    if not _HASH.fullmatch(manifest_hash):
        raise ValueError("the manifest's hash is malformed")
    return Position(int(generation), int(epoch)), manifest_hash


def _parse_opening(text: str | None) -> Opening | None:
    if text is None:
        return None
    generation, size_bytes, item = text.split("/")
    return Opening(int(generation), int(size_bytes), ItemId(parse_uuid(item, "item")))


def _parse_point(text: str | None, disks: str) -> PointMark | None:
    if text is None:
        return None
    cut, item, consistency, final = text.split("/")
    if consistency not in {"crash", "app"} or final not in {"-", "final"}:
        raise ValueError("the point's kind is unknown")
    return PointMark(
        CutId(parse_uuid(cut, "cut")),
        ItemId(parse_uuid(item, "item")),
        tuple(DiskId(str(uuid.UUID(hex=disk))) for disk in disks.split(",")),
        consistency == "app",
        final == "final",
    )
