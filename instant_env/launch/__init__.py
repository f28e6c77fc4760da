"""From the request for a machine to a login: techniques, timeline, login checks.

Who asks for machines (the harness, later the service) picks a technique and hands it to a
:class:`instant_env.launch.launcher.Launcher`, which fills, launches, watches, delivers the key and ends.
"""
