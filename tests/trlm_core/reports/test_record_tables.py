"""What was built, as tables: settings by stage, composition, artifacts named once."""

from trlm_core.artifacts.store import Store
from trlm_core.recipes.schema import NewTokens
from trlm_core.reports.record_tables import artifact_table, blend_tables, byte_words, settings_tables
from trlm_core.reports.results import RunResults


def test_a_setting_that_only_one_stage_has_is_absent_from_the_others(results: RunResults) -> None:
    stages = settings_tables(results.recipe)[0]
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in stages.rows}
    assert rows["training.beta"] == ["–", "–", "0.1"]
    assert rows["parent"] == ["base", "stage1_sft", "stage2_sft_think"]


def test_new_tokens_stand_with_the_rendering_and_are_named_by_their_fields(results: RunResults) -> None:
    first, *others = results.recipe.stages
    tokens = NewTokens(tokens=("<think>", "</think>"), start="mean", margin=None)
    thinking = first.model_copy(update={"rendering": first.rendering.model_copy(update={"new_tokens": tokens})})
    recipe = results.recipe.model_copy(update={"stages": (*others, thinking)})
    names = [row[0].text for row in settings_tables(recipe)[0].rows]
    assert "rendering.new_tokens" not in names
    assert names.index("rendering.new_tokens.tokens") < names.index("training.epochs")


def test_composition_shows_requested_kept_held_out_share_and_dropped(store: Store, results: RunResults) -> None:
    first = blend_tables(store, results.stages[0])[0].rows[0]
    assert [cell.text for cell in first] == ["chain_sum-answer", "8", "8", "2", "50.0", "too_long 3", "passed"]


def test_an_artifact_with_two_roles_has_one_row(results: RunResults) -> None:
    addresses = [row[1].text for row in artifact_table(results).rows]
    assert len(addresses) == len(set(addresses)) == 2 + 3 * 4 + 6


def test_bytes_in_words() -> None:
    assert [byte_words(12), byte_words(538090408)] == ["12 B", "513.2 MiB"]
