"""Records on disk: their fields, where they are, and how each is written as a whole or not at all."""
