"""The front door for `invoke`. The verbs are thin tasks in instant_env/cli/, shared with the console script.

Everything heavy is imported inside the tasks, so that ``invoke --list`` answers at once.
"""

import sys

from instant_env.cli.program import end_with_the_reader, namespace

end_with_the_reader(sys.argv[0])

__all__ = ["namespace"]
