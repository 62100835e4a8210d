"""The replica writer: the one thing that writes replicas. It takes its work from the store and leaves signed answers there.

Called by ``azure_sink/daemon.py``. It is never dialled, and it runs against any ``BlobClient``. What it does to a replica, in which
order, and why that survives a crash at any point: ``docs/replica-writer.md``.
"""
