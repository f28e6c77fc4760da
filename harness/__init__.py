"""The harness: run techniques side by side, record every attempt, compare with cold.

:func:`harness.plan.arguments.read` turns a request into a planner, and :func:`harness.run.runner.carry_out`
runs what it plans: that is all of ``invoke bench``.
"""
