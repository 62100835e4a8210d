"""The Azure side: the blob store with its Blob REST service, and the replica writer. Daemon ``azure-sink``."""
