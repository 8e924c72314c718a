"""`python answers.py URL`: ends with 0 where the address answers with success within five seconds; the images have no curl."""

import sys
import urllib.error
import urllib.request

SECONDS = 5


def main(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=SECONDS):
            return 0
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        print(f"{url}: wanted an answer, got {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
