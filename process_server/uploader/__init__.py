"""Uploader: from the spool to the store; segments fairly between machines, manifests in the order of their chain."""
