"""Errors that a user can cause: one readable line that says what was wrong, where, and what to do.

`tlx.main` prints them without a traceback and exits with code 2. Everything else is a bug and shows
its traceback.
"""


class InputError(ValueError):
    """The user's input (a config field, a file, a flag) is wrong."""


class InputFileNotFoundError(InputError, FileNotFoundError):
    """A file or folder that the user named, or that tlx needs, is not there."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""
