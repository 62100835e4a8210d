"""From dirty granules to acknowledged batches: digest table, epoch reader, shipper, and the uplink to a process server."""
