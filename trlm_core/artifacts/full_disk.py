"""A full disk, whoever meets it: one clear error, and nothing that keeps the space of what is removed."""

import errno
import gc
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trlm_core.artifacts.errors import StoreError, first_line

Result = TypeVar("Result")
FULL = (errno.ENOSPC, errno.EDQUOT)


class FullDiskError(StoreError):
    """There is no room; what was begun is gone, what was finished is kept."""


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk, or a quota that is used up, is what it came from."""
    while error is not None:
        if isinstance(error, FullDiskError) or _says_so(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def told(error: BaseException) -> str:
    """Of a full disk that met no artifact: a tracking database, a cache of the clients."""
    return f"wanted more room, got a full disk ({first_line(error)}); free some, then run again: what is finished is kept"


def with_room(make: Callable[[], Result], what: str, root: Path, advice: str) -> Result:
    """What `make` gives. Raises FullDiskError, which holds nothing of the error that it stands for."""
    try:
        return make()
    except StoreError:  # it is clear already
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        said, full = first_line(error), _disk_of(error) or root
    gc.collect()  # the error's frames hold files open, and a file that is open keeps its space when it is removed
    usage = shutil.disk_usage(full)
    raise FullDiskError(
        f"{full}: wanted more room for {what}, got a full disk ({said}); what was begun is removed, {usage.free:,} of {usage.total:,} "
        f"bytes are free; free more or {advice}, then run again: what is finished is kept"
    )


def _disk_of(error: BaseException) -> Path | None:
    """A folder on the disk that is full, where the error names a file: a cache of the clients can be on another than the store."""
    name = getattr(error, "filename", None)
    folder = Path(os.fspath(name)).parent if isinstance(name, str | os.PathLike) else None
    return folder if folder is not None and folder.is_dir() else None


def _says_so(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if isinstance(error, OSError):
        return error.errno in FULL
    return os.strerror(errno.ENOSPC) in str(error)  # of safetensors, whose error has no number
