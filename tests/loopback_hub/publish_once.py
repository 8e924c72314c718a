"""One publication by the core alone: `python -m tests.loopback_hub.publish_once STORE ADDRESS REPO [SECONDS]`.

SECONDS: how long the clients wait for a byte. Ends with one line of JSON: the publication, or the error that it ended with.
A checkpoint's card is what the environment variable CARD says.
"""

import dataclasses
import json
import logging
import os
import sys

from trlm_core.artifacts.store import Store
from trlm_core.data import hub
from trlm_core.data import publish as blends
from trlm_core.data.errors import PublishConnectionError
from trlm_core.data.repository import Publication
from trlm_core.training import publish as checkpoints


def published(store: Store, address: str, repo: str) -> Publication:
    (manifest,) = store.manifests_at([address])
    if manifest.kind == "checkpoints":
        checkpoints.check_repository(repo)
        return checkpoints.publish(store, manifest, os.environ["CARD"], repo)
    blends.check_repository(repo)
    return blends.publish(store, manifest, repo)


def main() -> None:
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    store, address, repo, *seconds = sys.argv[1:]
    hub.SECONDS = float(seconds[0]) if seconds else hub.SECONDS
    try:
        made = published(Store.open(store), address, repo)
    except (ValueError, PublishConnectionError) as error:
        logging.exception("as a worker would log it")
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    else:
        print(json.dumps(dataclasses.asdict(made)))


if __name__ == "__main__":
    main()
