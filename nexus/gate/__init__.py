"""The proof that a bundle needs no teacher: a fresh process without network, with every opened file on record."""
