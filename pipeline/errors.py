"""The errors that several rooms share."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend: arguments, input, environment, another run.

    The message is a sentence that names the fault and the remedy. A command that ends with one has exit code 2.
    """


class OutputError(UserError):
    """The output cannot take this run's rows."""
