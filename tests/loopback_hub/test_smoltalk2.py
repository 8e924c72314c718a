"""The small repositories under real names: their splits, schemas and pages."""

import contextlib
import io
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.loopback_hub.smoltalk2 import BARE_MID, SFT, SMOLTALK2, conversation_row, conversations, preferences, smoltalk2

ROOT = Path(__file__).parents[2]


def test_its_splits_are_the_recipe_s():
    recipe = yaml.safe_load((ROOT / "trlm_core/recipes/trlm-135m/recipe.yaml").read_text())
    sources = [source for stage in recipe["stages"] for source in stage["blend"]["sources"] if source["repo"] == SMOLTALK2]
    files = smoltalk2(2, files=1)
    assert {f"{each['subset']}/{each['split']}-00000-of-00001.parquet" for each in sources} == set(files) - {"README.md"}


def test_forty_rows_of_every_split_take_little_time():
    began = time.monotonic()
    first = smoltalk2(40)
    assert time.monotonic() - began < 2
    assert first == smoltalk2(40), "the same bytes each time"


def test_a_split_is_parted_into_files_and_row_groups():
    files = smoltalk2(40, row_group=6, files=3, counts={"s1k_1.1_think": 20})
    footers = [pq.read_metadata(_opened(files[f"SFT/s1k_1.1_think-0000{number}-of-00003.parquet"])) for number in range(3)]
    assert [[footer.row_group(group).num_rows for group in range(footer.num_row_groups)] for footer in footers] == [[6, 1], [6, 1], [6]]


@pytest.mark.parametrize("order", [("content", "role"), ("role", "content")])
def test_a_turn_s_fields_come_in_either_order(order: tuple[str, str]):
    files = smoltalk2(1, files=1, sft=conversations(order))
    schema = pq.read_schema(_opened(files["SFT/s1k_1.1_think-00000-of-00001.parquet"]))
    assert [field.name for field in schema.field("messages").type.value_type] == list(order)
    assert schema.names == SFT.names


def test_mid_can_lack_the_column_that_the_real_one_lacks():
    files = smoltalk2(1, files=1, mid=BARE_MID)
    assert pq.read_schema(_opened(files["Mid/OpenThoughts3_1.2M-00000-of-00001.parquet"])).names == ["messages", "source"]


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_page_is_noticed_where_pages_have_checksums(checksums: bool):
    files = preferences(40, row_group=40, files=1, checksums=checksums)
    damaged = bytearray(_opened(files["data/train-00000-of-00001.parquet"]).read())
    damaged[damaged.index(b"id-0")] = ord("x")
    with pytest.raises(OSError, match="CRC checksum") if checksums else contextlib.nullcontext():
        pq.read_table(io.BytesIO(bytes(damaged)), page_checksum_verification=True)


def test_think_splits_think():
    thinking = conversation_row("s1k_1.1_think", 3)
    assert thinking["messages"][1]["content"].startswith("<think>\n")
    assert "\n</think>\n\nThe answer" in thinking["messages"][1]["content"]
    assert thinking["chat_template_kwargs"]["enable_thinking"]
    assert "<think>" not in conversation_row("smoltalk_smollm3_smol_rewrite_no_think", 3)["messages"][1]["content"]


def _opened(content: bytes | Path) -> io.BytesIO:
    assert isinstance(content, bytes)
    return io.BytesIO(content)
