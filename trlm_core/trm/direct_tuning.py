"""The row that a thinker would have to beat: the same language model, unfrozen, fine-tuned on answers without a thought."""

from pathlib import Path
from typing import Any

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.split import seed_of
from trlm_core.recipes.trm_schema import Schedule, TRMRecipe
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import load_model, save_checkpoint
from trlm_core.trm.base_llama import write_history
from trlm_core.trm.text_training import OnStep, TextTraining, train_on_text
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import TOKENIZER, read_thoughts


def direct_tuned_spec(recipe: TRMRecipe, schedule: Schedule, base: Fingerprinted, thoughts: Fingerprinted) -> Spec:
    identity = {"made_by": "direct_tuning/1", "training": schedule.model_dump(mode="json"), "seed": recipe.seed}
    inputs = {"base": base.fingerprint, "thoughts": thoughts.fingerprint}
    return Spec("checkpoints", recipe.name, "direct-tuned", identity, inputs, recipe.model_dump(mode="json"))


def make_direct_tuned(
    store: Store,
    recipe: TRMRecipe,
    schedule: Schedule,
    base: Manifest,
    thoughts: Manifest,
    device: str,
    on_step: OnStep = lambda done, total: None,
) -> Manifest:
    """The base goes on from its weights; a checkpoint of its own."""
    spec = direct_tuned_spec(recipe, schedule, base, thoughts)

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = load_tokenizer(store.folder(thoughts) / TOKENIZER)
        model = load_model(store.folder(base), "float32").to(device)  # type: ignore[arg-type]
        rows = [example.row for example in read_thoughts(store.folder(thoughts), "train")]
        training = TextTraining(schedule, thought_share=0.0, seed=seed_of(recipe.seed, "direct-tuned/order"))
        history = train_on_text(model, rows, ThinkTokens.of(tokenizer), training, store.workspace(spec), on_step)
        save_checkpoint(model, tokenizer, folder)
        return write_history(history, folder)

    return store.make(spec, build)
