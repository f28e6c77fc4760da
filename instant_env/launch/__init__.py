"""From the request for a machine to a login: techniques, timeline, login checks.

A program that needs machines (the harness, the service) picks a technique and hands it to a
:class:`instant_env.launch.launcher.Launcher`, which fills pool slots, launches, watches,
delivers keys and ends machines.
"""
