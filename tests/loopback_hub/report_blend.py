"""The report's second stage on a loopback Hub: its six splits at their counts, with short texts; and what an undisturbed blend of them leaves."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.loopback_hub.blends import command, copied_store, environment, hashes, store_with_base, told, write_recipe
from tests.loopback_hub.faults import Request
from tests.loopback_hub.server import LoopbackHub
from tests.loopback_hub.smoltalk2 import PREFERENCES, SMOLTALK2, preferences, smoltalk2
from trlm_core.artifacts.store import Store
from trlm_core.recipes.load import load_recipe

STAGE = "stage2_sft_think"
BLEND = f"datasets/trlm-135m/{STAGE}"
LATENCY_SECONDS = 0.01
OTHER_ROWS = 10  # of the splits that the stage does not take
ROW_GROUP = 2_000


@dataclass(frozen=True)
class ReportBlend:
    hub: LoopbackHub
    recipe: Path
    splits: dict[str, int]  # with the rows that are taken of each, all it has
    base_store: Path  # that has the base and nothing else
    home: Path

    @property
    def working(self) -> Path:
        """Folder that the processes run in; it stays empty."""
        return self.home / "working"

    def start(self, store: Path, *before: str, driver: str = "blend_once") -> subprocess.Popen[str]:
        self.working.mkdir(exist_ok=True)
        asked = command(self.recipe, STAGE, store, *before, driver=driver)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(asked, cwd=self.working, env=environment(self.hub, self.home / "hf"), **pipes)

    def run(self, store: Path) -> dict[str, Any]:
        """What the process says at its end, and its log."""
        out, log = self.start(store).communicate(timeout=120)
        assert out, log[-3000:]
        return {**told(out), "log": log}

    def reads_rows(self, request: Request, split: str) -> bool:
        """A file's data request that ends before the file does: there the footer is."""
        if not request.is_data or request.range is None or f"/{split}-" not in request.path:
            return False
        head = self.hub.repositories.made(SMOLTALK2).head
        return request.range[1] < head.files[request.path.split(f"/{head.sha}/")[1]].size


@dataclass(frozen=True)
class Undisturbed:
    artifacts: dict[str, dict[str, str]]  # address -> sha256 of each file
    sizes: dict[str, int]  # address -> bytes of its files
    fingerprint: str
    data_requests: int
    calls: dict[str, int]  # as killed_blend counts them


@contextlib.contextmanager
def served_report_blend(base: Path, home: Path) -> Iterator[ReportBlend]:
    taken = load_recipe("trlm-135m", variant="report").stage(STAGE).blend.sources
    splits = {source.split: source.num_examples for source in taken if source.kind == "hub"}
    with LoopbackHub(LATENCY_SECONDS) as hub:
        hub.repositories.made(SMOLTALK2).commit(smoltalk2(OTHER_ROWS, ROW_GROUP, counts=splits))
        hub.repositories.made(PREFERENCES).commit(preferences(OTHER_ROWS))
        recipe = write_recipe(home / "recipe.yaml", hub, base, lambda _: None)
        yield ReportBlend(hub, recipe, splits, store_with_base(home / "base", base), home)


def blended_undisturbed(blend: ReportBlend) -> Undisturbed:
    store = copied_store(blend.base_store, blend.home / "undisturbed")
    out, log = blend.start(store, "none", "0", driver="killed_blend").communicate(timeout=120)
    assert out, log[-3000:]
    made, calls = (json.loads(line) for line in out.splitlines()[-2:])
    sizes = {each.address: each.size for each in Store.open(store).manifests()}
    return Undisturbed(artifacts_of(store), sizes, made["fingerprint"], len(blend.hub.data_requests()), calls)


def artifacts_of(store: Path) -> dict[str, dict[str, str]]:
    """Address -> sha256 of each file, of every finished artifact; each file as its manifest has it."""
    opened = Store.open(store)
    return {each.address: hashes(opened.folder(each)) for each in opened.manifests()}
