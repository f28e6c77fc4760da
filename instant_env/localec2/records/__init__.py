"""What is on disk, and how each record is written whole or not at all."""
