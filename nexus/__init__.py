"""Applications on top of the runtime: clients of it, and above everything but the console."""
