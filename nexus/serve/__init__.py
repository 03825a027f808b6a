"""A small HTTP server for one bundle, in the dialect of OpenAI's API. Standard library only, beside what a bundle needs."""
