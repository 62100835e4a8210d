"""The decisions: lifecycles, desired state, health, retention, placement, readiness, proof. Plain values in, plain values out.

Nothing here does I/O or asks for the time (``tests/test_architecture.py``). Called by the services and the reconciler.
"""
