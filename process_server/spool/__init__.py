"""The spool: an append-only, checksummed log of bounded files that makes batches and manifests durable until the store has them."""
