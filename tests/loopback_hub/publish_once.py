"""One publication by the core alone: `python -m tests.loopback_hub.publish_once STORE ADDRESS REPO [SECONDS]`.

SECONDS: how long the clients wait for a byte. Ends with one line of JSON: the publication, or the error that it ended with.
"""

import dataclasses
import json
import logging
import sys

from trlm_core.artifacts.store import Store
from trlm_core.data import hub, publish
from trlm_core.data.errors import PublishConnectionError


def main() -> None:
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    store, address, repo, *seconds = sys.argv[1:]
    hub.SECONDS = float(seconds[0]) if seconds else hub.SECONDS
    opened = Store.open(store)
    try:
        publish.check_repository(repo)
        made = publish.publish(opened, opened.manifests_at([address])[0], repo)
    except (ValueError, PublishConnectionError) as error:
        logging.exception("as a worker would log it")
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    else:
        print(json.dumps(dataclasses.asdict(made)))


if __name__ == "__main__":
    main()
