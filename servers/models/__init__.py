"""Shared model library: built-in and Hugging Face models behind one face, and the scores they are judged by."""
