"""The Mobility service: captures the writes of a server's disks and replicates them, epoch by epoch, to a process server."""
