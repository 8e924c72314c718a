"""A repository to read in tests: a file of 4,096 bytes that differ from their neighbours, and a few small ones."""

NAME = "owner/name"
LETTERS = bytes(range(256)) * 16
FILES = {"README.md": b"---\nlicense: mit\n---\n# Letters\n", "data/a.parquet": LETTERS, "data/b.txt": b"b", "z.txt": b"z"}


def address(path: str) -> str:
    """Of a file on main."""
    return f"/datasets/{NAME}/resolve/main/{path}"
