"""Arrow's memory."""

import os

import pyarrow as pa

CHOSEN = "ARROW_DEFAULT_MEMORY_POOL"  # Arrow's own variable: who sets it has chosen


def use_tight_pool() -> None:
    """jemalloc, where Arrow has it: its default, mimalloc, keeps a heap for each thread, which costs a blend a third more memory."""
    if CHOSEN not in os.environ and "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
