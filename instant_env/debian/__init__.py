"""Debian's packages on any host: apt in a directory of its own, mirrors and keys, and programs of a build."""
