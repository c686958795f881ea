"""The one exception type that means "the user can mend this"."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the configuration, the data or a checkpoint.

    The message says, in one line, what was found, what was expected and what to type.
    `src.run` prints it as `error: …` and exits with code 2; any other exception is a bug of ours
    and leaves a traceback and exit code 1.
    """
