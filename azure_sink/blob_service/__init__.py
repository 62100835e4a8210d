"""Azure Blob REST over HTTPS in front of ``BlobStore``: one request parser, one error table, one router, one module per resource.

What is served and what is not: ``docs/blob-service.md``. The handlers are thin: parse, call the store, answer.
"""
