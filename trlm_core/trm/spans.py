"""Which positions a TRM reads: the prompt up to its `<think>`, the thought after it up to `</think>`.

    ids      pad  Q  Q  <think>  c  c  </think>  a
    prompt    0   1  1     1     0  0     0      0
    thought   0   0  0     0     1  1     1      0

B batch, L positions. Pads are told by the attention mask, never by token id: in many a tokenizer the pad is end-of-turn.
"""

from torch import Tensor


def prompt_mask(ids_BL: Tensor, mask_BL: Tensor, think_id: int) -> Tensor:
    """Up to the row's first `<think>`, with it. Nothing of a row without one: it does without the TRM."""
    is_think_BL = (ids_BL == think_id) & mask_BL.bool()
    before_BL = is_think_BL.cumsum(dim=1) - is_think_BL.long() == 0
    return before_BL & mask_BL.bool() & is_think_BL.any(dim=1, keepdim=True)


def thought_mask(ids_BL: Tensor, mask_BL: Tensor, think_id: int, end_think_id: int) -> Tensor:
    """After the row's first `<think>`, up to the next `</think>`, with it; to the row's end where none comes."""
    is_think_BL = (ids_BL == think_id) & mask_BL.bool()
    after_BL = is_think_BL.cumsum(dim=1) - is_think_BL.long() > 0
    is_end_BL = (ids_BL == end_think_id) & after_BL
    return after_BL & mask_BL.bool() & (is_end_BL.cumsum(dim=1) - is_end_BL.long() == 0)
