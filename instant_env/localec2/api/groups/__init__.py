"""Security groups: the actions on groups, and on their rules."""
