"""What stops the commands of `compose`: one clear line for the person at the terminal."""

from shared.errors import InferbaseError


class StartFailed(InferbaseError):
    """A process could not be started."""


class CommandFailed(InferbaseError):
    """The command could not be carried out."""
