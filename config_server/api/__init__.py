"""The HTTP surface under ``/api/v1``: one file a resource, each a list of routes; ``routes`` serves them, ``openapi`` documents them."""
