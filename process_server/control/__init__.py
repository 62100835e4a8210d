"""Control: what the configuration server is asked and told."""
