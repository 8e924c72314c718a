"""The special tokens around a thought, as ids: ThinkTokens(think=49152, end_think=49153, pad=2, eos=2)."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trlm_core.text.thoughts import CLOSE, OPEN


class ThinkTokensError(ValueError):
    """The tokenizer cannot mark a thought; the message says what it lacks."""


@dataclass(frozen=True)
class ThinkTokens:
    think: int
    end_think: int
    pad: int  # may be eos: pads are told by a mask, never by id
    eos: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, think: str = OPEN, end_think: str = CLOSE) -> "ThinkTokens":
        """Raises ThinkTokensError where a tag is not one token of its own, or end or pad are not set."""
        return cls(
            think=_single_id(tokenizer, think),
            end_think=_single_id(tokenizer, end_think),
            pad=_set_id(tokenizer, "pad_token"),
            eos=_set_id(tokenizer, "eos_token"),
        )


def _single_id(tokenizer: PreTrainedTokenizerBase, tag: str) -> int:
    ids = tokenizer.encode(tag, add_special_tokens=False)
    # A tokenizer that does not know the tag cuts it into pieces, or makes one unknown token of it.
    if len(ids) != 1 or tokenizer.get_vocab().get(tag) != ids[0]:
        raise ThinkTokensError(
            f"{tokenizer.name_or_path or 'tokenizer'}: wanted {tag} as one token, got {tokenizer.convert_ids_to_tokens(ids)}; "
            "take a checkpoint of a stage that adds it (rendering.new_tokens)"
        )
    return ids[0]


def _set_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    value = getattr(tokenizer, f"{name}_id")
    if not isinstance(value, int):
        raise ThinkTokensError(
            f"{tokenizer.name_or_path or 'tokenizer'}: wanted a {name}, got {value}; set it before the thoughts are made"
        )
    return value
