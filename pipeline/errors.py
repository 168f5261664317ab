"""The errors that several rooms share."""

from __future__ import annotations


class UserError(Exception):
    """A fault that the user can mend: in the arguments, the input or the environment, or another run is active.

    The message names the fault and the next step. The command ends with exit code 2.
    """


class OutputError(UserError):
    """The output cannot take the rows of this run."""
