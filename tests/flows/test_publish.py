"""`trlm blend --publish` from the command to the loopback Hub: refused before any work, published once, found there by a repeat."""

import os
import sqlite3
from pathlib import Path
from typing import Any

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.clients import told_by_client
from tests.loopback_hub.server import LoopbackHub

REPO = "tester/blend"
READER = "hf_reader_0123456789"


def test_a_blend_is_published_with_its_card_and_a_repeat_commits_nothing(
    trlm: Any, tiny_recipe_file: Path, tmp_path: Path, prefect_home: Path
) -> None:
    with LoopbackHub() as hub:
        hub.repositories.made("owner/private").token = READER
        clients = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        store = tmp_path / "runs"

        def blend(stage: str = "stage1_sft", **environment: str) -> Any:
            arguments = ["blend", str(tiny_recipe_file), stage, "--store", str(store), "--publish", REPO, "--json"]
            return trlm(*arguments, **{**clients, "HF_TOKEN": TOKEN, **environment})

        refused = blend(HF_TOKEN=READER)
        assert refused.code == 2
        (line,) = refused.err.strip().splitlines()
        assert line.startswith(f"trlm: {REPO}: wanted a token that may write it, the Hub says 403")
        assert not list(store.glob("*/*/*")), "nothing is built"
        assert blend("stage9").code == 2
        assert hub.repositories.get(REPO) is None, "nor a repository made for a stage that is none"

        first = blend()
        assert first.code == 0, first.err[-4000:]
        repository = hub.repositories.get(REPO)
        assert repository is not None
        url = f"{hub.endpoint}/datasets/{REPO}/commit/{repository.head.sha}"
        assert f"published    {url}" in first.out
        assert first.last_line["published"] == url
        assert _links(prefect_home) == [f"[{REPO} @ {repository.head.sha[:12]}]({url})"]
        code = f'import datasets\ntell(datasets.load_dataset("{REPO}", split="train").num_rows)'
        assert told_by_client(hub, tmp_path / "reader", code, {"HF_TOKEN": TOKEN}) == first.last_line["counts"]["rows"]

        again = blend()
        assert again.code == 0, again.err[-4000:]
        assert f"Already there: {REPO} is this blend at commit {repository.head.sha}" in again.out
        assert len(repository.commits) == 2, "one that made the repository, and the blend's"

    assert READER not in refused.out + refused.err
    assert TOKEN not in first.out + first.err + again.out + again.err
    kept = [path for folder in (store, prefect_home) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in kept if TOKEN.encode() in path.read_bytes()]


def _links(home: Path) -> list[str]:
    """Link artifacts of published blends, as Prefect's database has them."""
    with sqlite3.connect(os.fspath(home / "prefect.db")) as database:
        rows = database.execute("select data from artifact where key = 'published-stage1-sft'").fetchall()
    return [row[0].strip('"') for row in rows]
