"""Publish an AMI without a builder: the bytes of one cloud's snapshots in another's, and registered."""
