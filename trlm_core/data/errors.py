"""What can be wrong with a source, and with a blend or a checkpoint on its way to the Hub."""


class SourceError(ValueError):
    """A source cannot give what the recipe asks of it; the recipe or the source has to change."""


class SourceConnectionError(ConnectionError):
    """A source could not be read this time, however often it was tried; another time it may."""


class CheckError(ValueError):
    """The checks of a blend could not be run."""


class PublishError(ValueError):
    """The Hub cannot take a blend or a checkpoint as asked; the message says what to do."""


class PublishConnectionError(ConnectionError):
    """The Hub did not take a blend or a checkpoint this time; another time it may. What it took stays there."""
