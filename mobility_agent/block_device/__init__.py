"""Block devices and files as disks: geometry, identity, listing, O_DIRECT reads, exclusive claims."""
