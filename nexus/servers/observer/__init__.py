"""The runtime's observer server with what Nexus adds."""
