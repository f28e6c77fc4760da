"""Packages and downloads of a builder, by way of the computer that bakes.

A builder may have no way to a registry: localec2's guests on many networks, machines in a private subnet. The
bake's own SSH connection gives it one: a reverse forward from the builder's loopback to a proxy in the bake's
process, which lets through the hosts that base and recipe name, and reaches them as this computer does. It
lasts as long as the steps; the image gets nothing of it.
"""
