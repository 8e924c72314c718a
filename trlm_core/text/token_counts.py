"""How many tokens texts have, by a checkpoint's tokenizer.json; without transformers, and with every core."""

from collections.abc import Callable, Sequence
from pathlib import Path

BATCH = 64  # texts whose encodings are held at once
TokenCounter = Callable[[Sequence[str]], list[int]]


def token_counter(folder: Path) -> TokenCounter:
    """Counts without special tokens. Raises FileNotFoundError where the folder has no tokenizer.json."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: wanted a tokenizer.json, got none")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        parts = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
        return [len(each.ids) for part in parts for each in tokenizer.encode_batch_fast(list(part), add_special_tokens=False)]

    return count
