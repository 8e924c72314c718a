"""The process that pushes one save: `python -m trlm_core.training.save_push FOLDER REPO STEP PARENT`.

Ends with one line: {"url": "https://...", "is_new": true}, or {"error": "owner/name: wanted ...", "may_pass": true}.
"""

import json
import sys
from pathlib import Path
from typing import Any

from trlm_core.data.errors import PublishConnectionError, PublishError
from trlm_core.training.publish import publish_folder
from trlm_core.training.watch import ProcessAddress, end_with


def main() -> None:
    folder, repo, step, parent = sys.argv[1:]
    end_with(ProcessAddress.model_validate_json(parent))
    print(json.dumps(_told(Path(folder), repo, int(step))))


def _told(folder: Path, repo: str, step: int) -> dict[str, Any]:
    try:
        published = publish_folder(folder, repo, f"step {step}")
    except (PublishError, PublishConnectionError) as error:
        return {"error": str(error), "may_pass": isinstance(error, PublishConnectionError)}
    except Exception as error:  # its words are a client's, and might quote a header
        return {"error": f"{repo}: {type(error).__name__}", "may_pass": False}
    return {"url": published.url, "is_new": published.is_new}


if __name__ == "__main__":
    main()
