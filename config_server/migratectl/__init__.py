"""``migratectl``: the operators' command line. It speaks the public API only, from anywhere that reaches the configuration server."""
