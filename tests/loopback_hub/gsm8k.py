"""A small benchmark under the real name and with the real schema: three questions of `openai/gsm8k`'s test split, and none of them real.

{"question": "Nora packs 12 jars of plum jam ...", "answer": "12 * 4 = 48\n#### 48"}
"""

import pyarrow as pa

from tests.loopback_hub.repositories import Content
from tests.loopback_hub.smoltalk2 import card, parquet_files

GSM8K = "openai/gsm8k"
QUESTIONS = (
    "Nora packs 12 jars of plum jam in every crate and fills 4 crates each morning. How many jars does she pack in one week?",
    "A tram leaves the depot every 9 minutes from six until noon. How many trams leave the depot before the clock strikes eight?",
    "Three painters need 10 hours for a long fence by the canal. How many hours would five painters of the same pace need?",
)
ROWS = pa.schema([("question", pa.string()), ("answer", pa.string())])
BENCHMARK = {"repo": GSM8K, "subset": "main", "split": "test", "revision": "main", "columns": ["question"]}  # as a recipe has it


def gsm8k() -> dict[str, Content]:
    rows = [{"question": question, "answer": "#### 48"} for question in QUESTIONS]
    made = parquet_files("main/test", rows, ROWS, row_group=10, files=1)
    return {"README.md": card({"main": {"test": "main/test-*"}}, terms="mit"), **made}
