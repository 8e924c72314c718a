"""What changed between two versions of a blend: a row a fact that differs, sources and their revisions first.

{"what": "revision of openthoughts3_1.2m", "before": "1a2b3c4d5e6f", "after": "9f8e7d6c5b4a"}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.blend import read_checks, read_origins

ABSENT = "–"


def previous(store: Store, blend: Manifest) -> Manifest | None:
    """The newest version before this one; None for the first."""
    place = f"{blend.kind}/{blend.group}/{blend.name}"
    before = sorted(address for address in store.finished(place) if address < blend.address)
    return next((each for each in store.manifests_at(before[-1:])), None)


def drift(store: Store, before: Manifest, after: Manifest) -> list[dict[str, str]]:
    old, new = (_facts(each, store.folder(each)) for each in (before, after))
    names = list(dict.fromkeys([*new, *old]))
    return [
        {"what": name, "before": old.get(name, ABSENT), "after": new.get(name, ABSENT)} for name in names if old.get(name) != new.get(name)
    ]


def _facts(blend: Manifest, folder: Path) -> dict[str, str]:
    (stage,) = (stage for stage in blend.recipe["stages"] if stage["name"] == blend.name)
    facts = {f"revision of {name}": each["revision"][:12] for name, each in _by_name(blend, stage).items() if "revision" in each}
    for name, count in blend.counts["sources"].items():
        facts |= {f"rows of {name}": f"{count['train']:,}", f"rows read of {name}": f"{count.get('read', count['train']):,}"}
        facts |= {f"{reason} in {name}": f"{number:,}" for reason, number in count["dropped"].items()}
    for name, origin in read_origins(folder).items():
        facts |= {f"column {column} of {name}": kind for column, kind in origin.columns.items()}
    return facts | {check.name: check.got for check in read_checks(folder) if check.wanted is None}


def _by_name(blend: Manifest, stage: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The recipe's sources under the names that the counts have, in the same order."""
    return dict(zip(blend.counts["sources"], stage["blend"]["sources"], strict=True))
