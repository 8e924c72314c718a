"""Flow `train`: one stage from its stage dataset and its parent, with its held-out rows scored."""

from prefect import flow

from tasks.evals import score_held_out
from tasks.place import Place
from tasks.training import add_tokens, train_stage
from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.schema import Stage
from trlm_core.reports.results import StageResult


@flow(name="train", flow_run_name="{stage.name}", validate_parameters=False)
def train(place: Place, stage: Stage, blend: Manifest, dataset: Manifest, parent: Manifest) -> StageResult:
    start = add_tokens(place, stage, dataset, parent)
    checkpoint = train_stage(place, stage, dataset, start)
    held_out = score_held_out(place, stage, checkpoint, start, dataset)
    return StageResult(stage, blend, dataset, start, checkpoint, held_out)
