"""Far ends of a hand-over that a test plays."""
