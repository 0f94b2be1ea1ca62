"""Every error that textebm raises on purpose, and the exit code each one ends a command with.

A message says what is wrong, where (file, line, key), and what to do about it.
"""


class TextebmError(Exception):
    """Base class: something failed at run time."""

    exit_code = 1


class UsageError(TextebmError):
    """The command, an option or an argument is wrong."""

    exit_code = 2


class ConfigError(UsageError, ValueError):
    """A configuration has an unknown key or a value out of range."""


class DataError(UsageError):
    """An input file or corpus is missing, unreadable or unusable."""


class CheckpointError(TextebmError):
    """A checkpoint or model folder is missing, broken or of a foreign format."""


class DamagedError(CheckpointError):
    """A checkpoint is not as it was written: a file is missing, cut short or changed."""


class JudgeError(TextebmError):
    """A language model that judges text could not be estimated or queried."""


class ProcessError(TextebmError):
    """Another process of the same job has failed, and so this one ends, too."""

    def __init__(self, message: str, exit_code: int = 1, lost: bool = False) -> None:
        """What the other one said.

        Args:
            message: its error; or that it is gone, where nobody knows why.
            exit_code: of this process, too.
            lost: whether nobody knows why.
        """
        super().__init__(message)
        self.exit_code, self.lost = exit_code, lost


class DivergenceError(TextebmError):
    """Training diverged: a loss, a latent or an energy is not finite or has run away."""

    exit_code = 3
