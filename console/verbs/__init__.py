"""One module a noun; `console.main` lists them and loads the one that a command line names."""
