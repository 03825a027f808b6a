"""User-space servers: each a folder with its own process; they meet only over IPC."""
