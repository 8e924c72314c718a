"""Flow `blend`: the sources of one stage, its blend, its stage dataset."""

from prefect import flow, unmapped

from tasks.data import assemble_blend, read_source, render_stage_dataset
from tasks.place import Place
from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.schema import Stage


@flow(name="blend", flow_run_name="{stage.name}", validate_parameters=False)
def build_blend(place: Place, stage: Stage, base: Manifest) -> tuple[Manifest, Manifest]:
    """The stage's blend and its stage dataset."""
    sources = read_source.map(unmapped(place), unmapped(stage), list(stage.blend.sources), unmapped(base))
    blend = assemble_blend(place, stage, sources.result())
    return blend, render_stage_dataset(place, stage, blend, base)
