"""What stays of a prompt beside its thought: all of it, or where the context is full, all but its oldest part.

    slide, M = 3, 1 sink     x x x x x x <think> | u u u | </think> a
                             1 0 0 0 1 1    1      1 1 1       1    1

B batch, L positions.
"""

from torch import Tensor

from trlm_core.trm.hidden_states import position_ids


def slide(mask_BL: Tensor, num_latents: int, sink_tokens: int, room: int, max_context: int) -> Tensor:
    """The prompt's mask without its oldest M positions after the sink, in rows that would not fit; positions are numbered anew.

    Such a row keeps its length: M positions go, M latents come. One too short to lose M keeps them all. room: positions after the latents.
    """
    lengths_B1 = mask_BL.sum(dim=1, keepdim=True)
    too_long_B1 = lengths_B1 + num_latents + room > max_context
    can_lose_B1 = lengths_B1 > sink_tokens + num_latents  # <think>, the last one, stays
    places_BL = position_ids(mask_BL)
    oldest_BL = (places_BL >= sink_tokens) & (places_BL < sink_tokens + num_latents)
    return mask_BL & ~(oldest_BL & too_long_B1 & can_lose_B1)


def check_fits(mask_BL: Tensor, num_latents: int, room: int, max_context: int) -> None:
    """Raises ValueError where a row, its thought and what follows are longer than the language model's context."""
    longest = int(mask_BL.sum(dim=1).max())
    if longest + num_latents + room > max_context:
        wanted = f"wanted at most {max_context:,} positions (the language model's context)"
        got = f"got {longest:,} of the prompt + {num_latents} latents + {room:,} after them"
        raise ValueError(f"context: {wanted}, {got}; shorten the prompt or max_new_tokens, or set insertion to slide")
