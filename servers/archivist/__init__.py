"""The archivist: the only writer of the knowledge file system while the runtime is up."""
