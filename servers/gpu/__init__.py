"""The device server: what this host has, and how warm and busy it is."""
