"""Nexus's learner, dataset server and Observer: the runtime's own, which here also know its models and its data."""
