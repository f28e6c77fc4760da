"""The harness: run techniques side by side, record every attempt, compare with cold.

:func:`harness.run.runner.bench` is the way in.
"""
