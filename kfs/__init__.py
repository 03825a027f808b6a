"""The knowledge file system: content-addressed objects and a Merkle ledger, as a library with no processes of its own.

Responsible for: every byte under `RUN/store`. This package module imports nothing, so that the kernel can use
`kfs.records` without loading hashes, locks or keys. Refuses: torch and numpy anywhere inside it.
"""
