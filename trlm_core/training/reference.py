"""Reference log-probs of DPO: the start's summed log-probs of both replies of every pair, once, as an artifact of their own.

reference.parquet, a row a pair of the stage dataset: {"chosen": -31.25, "rejected": -40.5}
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.store import Spec
from trlm_core.recipes.schema import Recipe, Stage

FILE = "reference.parquet"
SCHEMA = pa.schema([("chosen", pa.float64()), ("rejected", pa.float64())])


def reference_spec(recipe: Recipe, stage: Stage, dataset: Fingerprinted, start: Fingerprinted) -> Spec:
    identity = {"made_by": "reference_log_probs/1", "precision": stage.training.precision}
    inputs = {"dataset": dataset.fingerprint, "start": start.fingerprint}
    return Spec("datasets", recipe.name, f"{stage.name}-reference", identity, inputs, recipe.model_dump(mode="json"))


def write_reference(folder: Path, chosen: list[float], rejected: list[float]) -> None:
    pq.write_table(pa.table({"chosen": chosen, "rejected": rejected}, schema=SCHEMA), folder / FILE)


def read_reference(folder: Path) -> tuple[list[float], list[float]]:
    table = pq.read_table(folder / FILE)
    return table["chosen"].to_pylist(), table["rejected"].to_pylist()


def count_reference(folder: Path) -> int:
    return pq.read_metadata(folder / FILE).num_rows
