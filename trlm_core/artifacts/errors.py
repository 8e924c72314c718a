"""What a store raises: a StoreError is the user's to mend; a lost connection or a lost lease may be gone at the next try."""


class StoreError(ValueError):
    """The store cannot be used as asked; the message says what to do."""


class StoreConnectionError(ConnectionError):
    """The store did not answer, although it could be opened."""


class LeaseLostError(RuntimeError):
    """Another process may have taken what this one was building."""


def first_line(error: BaseException) -> str:
    """Of its words; its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
