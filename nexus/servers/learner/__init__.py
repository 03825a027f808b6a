"""The runtime's learner server with what Nexus adds."""
