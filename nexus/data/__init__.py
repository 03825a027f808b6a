"""What capabilities are measured and taught on: samples as bytes, targets of teachers, and the pilot's own teachers."""
