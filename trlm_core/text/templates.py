"""Chat templates: `clean` (SmolLM2's form on one line) and `reference` (the report's code, indentation and all)."""

import json
from pathlib import Path

from trlm_core import recipes
from trlm_core.recipes.schema import Rendering

FOLDER = Path(recipes.__file__).parent / "chat_templates"


def chat_template(rendering: Rendering) -> str:
    """The Jinja text of the rendering's template, its default system turn written in, so that a tokenizer carries it whole."""
    source = (FOLDER / f"{rendering.template}.jinja").read_text()
    system = json.dumps(rendering.system_prompt or "", ensure_ascii=False)
    return f"{{% set default_system = {system} %}}{source}"
