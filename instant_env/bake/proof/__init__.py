"""What an image has to show before it counts as verified: a login, its recipe's checks, an audit.

``checks`` is what a recipe declares, ``checking`` asks a booted machine for it, ``verify`` does all three,
``verdict`` is the result.
"""
