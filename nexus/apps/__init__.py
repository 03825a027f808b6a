"""Apps that come with Nexus: a TOML file, its CSV of teachers and its page of contracts each."""
