"""The process server: receives batches, seals them, keeps them durable in its spool, uploads them to the store, relays receipts.

Read top-down: ``__main__ → cli → config → daemon → core``. Rooms: ``intake`` (HTTPS from agents), ``spool`` (the durable log),
``uploader`` (to the store), ``control`` (configuration server), ``core`` (decisions without I/O).
"""
