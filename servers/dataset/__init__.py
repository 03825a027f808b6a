"""The dataset server: deterministic batches of digits, JSON Lines or text, in pages."""
