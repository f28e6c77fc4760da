"""Reach a machine by SSH: probes for the instant it answers, logins, and the connection of a bake."""
