"""Fetch and run Debian's packages on any host: apt in its own directory, mirrors, keys, build commands."""
