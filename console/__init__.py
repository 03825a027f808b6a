"""The operator's console: the `recuros` command, its verbs and its views."""
