"""Names of the steps within jobs, shown to operators. Called by the verbs, the reconciler and ``desired.py``."""

from __future__ import annotations

from typing import Final

WAITING_FOR_AGENT: Final = "waiting-for-agent"
SEEDING: Final = "initial-replication"
RESYNCHRONIZING: Final = "resynchronizing"
WAITING_FOR_POINT: Final = "waiting-for-point"
MAKING_DISKS: Final = "making-disks"
DELETING_DISKS: Final = "deleting-disks"
WAITING_FOR_SOURCE: Final = "waiting-for-source"
SHIPPING: Final = "shipping-final-epoch"
HASHING: Final = "proving-identity"
CLOSING: Final = "closing-generations"
DELETING_REPLICAS: Final = "deleting-replicas"
