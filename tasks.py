"""The front door for `invoke`. The verbs are thin tasks in instant_env/cli/, shared with the console script.

Everything heavy is imported inside the tasks, so that ``invoke --list`` answers at once.
"""

from instant_env.cli.program import namespace

__all__ = ["namespace"]
