"""What two daemons must agree on: extents, bitmaps, epochs, wire frames, segments, manifests, receipts, errors, settings.

A module enters this package when two daemons import it. Nothing here imports a daemon's package.
"""

__version__ = "0.1.0"
