"""What can be wrong with a source."""


class SourceError(ValueError):
    """A source cannot give what the recipe asks of it; the recipe or the source has to change."""


class SourceConnectionError(ConnectionError):
    """A source could not be read this time, however often it was tried; another time it may."""
