"""Errors that a tool shows to its user as one line."""

import re


class UserError(Exception):
    """Something the user can put right: a wrong option, a missing file, an unreadable checkpoint.

    The tools print ``str(error)`` on stderr and leave with exit code 2, without a traceback. The message names
    what was wrong, its value, and what is allowed.

    Attributes:
        while_training: whether training had begun, so that processes may differ in it.
    """

    while_training = False


class Unreadable(UserError):
    """An image that cannot be read; the message names it."""


def first_line(error: BaseException | str) -> str:
    """What an error of a library says, on one line; its class's name where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: UserError) -> str:
    """The message on one line; one from a data loader's worker process comes with its traceback before it."""
    last = (str(error).strip().splitlines() or ["?"])[-1]
    return re.sub(rf"^{re.escape(UserError.__module__)}\.\w+: ", "", last)


class Interrupted(Exception):
    """The run was asked to stop by a signal, after its state was saved.

    Attributes:
        signal_number: the signal that asked (2 for Ctrl-C, 15 for SIGTERM).
    """

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """The exit code that shells use for a process ended by this signal: 130 or 143."""
        return 128 + self.signal_number
