"""One launch, from the request to a login: techniques, timeline, probes.

What asks for machines (the harness, later the service) picks a technique and hands it to
:class:`instant_env.launch.attempt.Attempt`, which launches, watches, probes, logs in and fills one timeline.
"""
