"""Intake: what agents send and ask for over HTTPS with mutual TLS."""
