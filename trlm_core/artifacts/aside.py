"""A small file that is the old one or the new one, whatever happens meanwhile: written aside and renamed."""

import os
from pathlib import Path


def write_aside(path: Path, text: str) -> None:
    """Against a kill, of this process or of another that writes it too; against a loss of power, `shelf.write_last`."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(text)
    aside.replace(path)
