"""The runtime's dataset server with what Nexus adds."""
