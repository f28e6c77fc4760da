"""The front door: verbs as thin Invoke tasks, and how they report, list and ask. Nothing below imports it."""
