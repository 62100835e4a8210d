"""Servers without an agent, reached over SSH: discovery, installation of the agent."""
