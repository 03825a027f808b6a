"""oBPF probes: hook sites, dispatchers, bounded maps and the built-in library.

Imports nothing: the kernel imports `probes.sites` and `probes.catalogue` and must stay free of torch.
"""
