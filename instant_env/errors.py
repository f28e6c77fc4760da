"""The one family of errors.

Every failure that a user can meet is an :class:`InstantEnvError`: a sentence that names the thing, and a
hint that says what to do next. The command line (``instant_env/cli/verb.py``) prints both in one line; a
traceback there is a bug.
"""

from __future__ import annotations


class InstantEnvError(Exception):
    """Root of the family.

    ``message`` says what went wrong and names the thing; ``hint`` says what to do next (may be empty);
    ``exit_code`` is what the process ends with when nothing handles the error.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def described(error: Exception) -> InstantEnvError | None:
    """What any program may meet with files, texts and numbers, as one of the family; None for the rest."""
    match error:
        case InstantEnvError():
            return error
        case OSError():
            names = [str(name) for name in (error.filename, error.filename2) if name is not None]
            about = " and ".join(names) or type(error).__name__
            return InstantEnvError(f"{about}: {error.strerror or error}")
        case UnicodeError():
            return UsageError(f"a text is not what it should be: {error}", hint="is a file of it not UTF-8?")
        case RecursionError() | OverflowError() | MemoryError():
            return UsageError(f"something given is too large: {str(error) or type(error).__name__}")
    return None


class UsageError(InstantEnvError, ValueError):
    """The request cannot be carried out as it is: an unknown recipe, a misspelt key, a wrong value."""

    exit_code = 2


class MissingToolError(InstantEnvError):
    """A program or file that the machine should have is not there."""

    exit_code = 3
