"""Whether a server answers with success at its health address: `python -m flows.health URL` ends with 0 where it does."""

import sys
import urllib.error
import urllib.request

SECONDS = 5


def answers(url: str) -> bool:
    return silence(url) is None


def silence(url: str) -> str | None:
    """Why it is not healthy; None where it is."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS):
            return None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        return f"{url}: wanted an answer, got {error}"


if __name__ == "__main__":
    sys.exit(silence(*sys.argv[1:]))
