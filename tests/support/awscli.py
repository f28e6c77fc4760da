"""The AWS CLI from PyPI, in an environment of its own: it pins botocore."""

from __future__ import annotations

import subprocess
import sys

from instant_env.settings import cache_home

AWSCLI = "awscli==1.46.2"


def command() -> list[str]:
    """How `aws` is called; it is installed at the first use and kept in the cache between runs.

    By its Python: pip's first line of that script is none where the path has a blank.
    """
    home = cache_home() / AWSCLI.replace("==", "-")
    path = home / "bin" / "aws"
    if not path.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", AWSCLI], check=True)
    return [str(home / "bin" / "python"), str(path)]
