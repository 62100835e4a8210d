"""The blob store: containers, blobs, pages, snapshots, leases, durable on one file system. Usable without HTTP (``store.BlobStore``).

Theory of operation and why: ``docs/decisions/0003-blob-store.md``. Two kinds of state in one directory:

    catalog.sqlite3      what exists, owned by the committer thread; readers have read-only connections
    arenas/NNNNNNNN      append-only files that hold every body as it arrived; freed ranges are punched out

Called by ``blob_service`` (HTTP) and, in process, by tests and the writer's adapter.
"""
