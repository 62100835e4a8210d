"""Client side of the Blob service: ``api`` (the contract), ``settings``, ``http_client`` (the implementation), ``codes``, ``failures``.

Called by the process server, the configuration server and the replica writer. Nothing is imported here, so that a core
may import ``api`` without pulling in aiohttp.
"""
