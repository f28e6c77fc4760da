"""instant-env: from an SSH public key to a login on EC2, as fast as EC2 can go, and proof of it."""

__version__ = "0.1.0"
