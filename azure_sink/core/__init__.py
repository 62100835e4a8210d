"""Decisions of the sink as plain values and functions: no I/O, no clock, no randomness.

Called by ``azure_sink/blob_store`` and ``azure_sink/blob_service`` (conditions, leases, pages) and by ``azure_sink/replica_writer``
(a replica's life, generations, write plans, recovery points, what may be collected).
"""
