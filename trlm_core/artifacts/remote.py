"""An S3 bucket's prefix: bytes by key, and conditional creation. The only module that speaks S3.

Endpoint and credentials come from the usual environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION.
"""

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trlm_core.artifacts.errors import StoreConnectionError, StoreError, first_line

PAGE_KEYS = 1000  # the most that S3 lists at once
PART_BYTES = 16 << 20
PARTS_AT_ONCE = 4
PARTS = {"chunksize": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
CONNECT_SECONDS = 5
PROBE = ".leases/conditional-puts"
SHA256 = "sha256"  # name of the metadata
REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403"}


@dataclass(frozen=True)
class Patience:
    tries: int  # of the client, with growing pauses
    rounds: int  # of such tries, by the file system above it
    read_seconds: int


PATIENT = Patience(tries=8, rounds=5, read_seconds=60)  # hours of work are to be saved
QUICK = Patience(tries=2, rounds=1, read_seconds=10)  # a store is opened, a lease renewed


class Remote:
    """Keys are relative to the prefix. Everything raises StoreError for what the user has to mend, else StoreConnectionError."""

    def __init__(self, address: str, patience: Patience = PATIENT) -> None:
        self.bucket, self.prefix = split_address(address)
        self.address = "/".join(["s3:/", self.bucket, *filter(None, [self.prefix])])
        self.endpoint = endpoint()
        self._patience = patience

    @functools.cached_property
    def _system(self) -> Any:
        import s3fs  # 0.5 s, which a local store need not pay

        system = s3fs.S3FileSystem(
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
            max_concurrency=PARTS_AT_ONCE,
            default_block_size=PART_BYTES,
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": self._patience.read_seconds,
                "retries": {"mode": "standard", "total_max_attempts": self._patience.tries},
            },
        )
        system.retries = self._patience.rounds
        return system

    @functools.cached_property
    def impatient(self) -> "Remote":
        """The same place, for calls that had better fail than last."""
        return Remote(self.address, QUICK)

    def check(self) -> None:
        """Raise StoreError unless the prefix can be listed and written, and a conditional put is one."""
        try:
            self.holds_anything()
            self.create(PROBE, b"")
            if self.create(PROBE, b""):
                raise StoreError(
                    f"store {self.address}: wanted a service that honours If-None-Match, got one that ignores it; "
                    "two machines could build the same there: use another service or a folder"
                )
        except StoreConnectionError as error:
            raise StoreError(str(error)) from error

    def holds_anything(self) -> bool:
        return bool(self._page("", MaxKeys=1).get("Contents"))

    def sizes(self, below: str = "") -> dict[str, int]:
        """Size of every object below, by its key, in the order of the keys."""
        page = self._page(below, MaxKeys=PAGE_KEYS)
        listed = page.get("Contents", [])
        while page.get("IsTruncated"):
            page = self._page(below, MaxKeys=PAGE_KEYS, ContinuationToken=page["NextContinuationToken"])
            listed += page.get("Contents", [])
        return {entry["Key"].removeprefix(self._below("")): entry["Size"] for entry in listed}

    def tags(self, below: str = "") -> dict[str, str]:
        """Entity tag of every object below, which changes with its bytes, by its key."""
        with self._clear_errors():
            found = self._system.find(self._path(below), detail=True)
        return {path.removeprefix(f"{self._path('')}".rstrip("/") + "/"): str(entry["ETag"]).strip('"') for path, entry in found.items()}

    def open(self, key: str) -> Any:
        """A file to read ranges of, each as it is asked for. Raises FileNotFoundError where there is no such object."""
        with self._clear_errors():
            return self._system.open(self._path(key), cache_type="none")

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError where there is no such object."""
        with self._clear_errors():
            return self._system.cat_file(self._path(key))

    def write(self, key: str, content: bytes) -> None:
        with self._clear_errors():
            self._system.pipe_file(self._path(key), content)

    def create(self, key: str, content: bytes) -> bool:
        """Write the object unless there is one; whether it was written. An answer that was lost on the way can make it False wrongly."""
        with self._clear_errors():
            try:
                self._system.pipe_file(self._path(key), content, mode="create")
            except OSError as error:
                if not _exists_already(error):
                    raise
                return False
            return True

    def delete(self, keys: Iterable[str]) -> None:
        with self._clear_errors():
            for key in keys:
                self._system.call_s3("delete_object", Bucket=self.bucket, Key=self._below("") + key)

    def upload(self, path: Path, key: str, sha256: str) -> bool:
        """Put the file there; False where another content is there already."""
        with self._clear_errors():
            try:
                self._system.put_file(
                    str(path),
                    self._path(key),
                    mode="create",
                    chunksize=PART_BYTES,
                    max_concurrency=PARTS_AT_ONCE,
                    Metadata={SHA256: sha256},
                )
            except OSError as error:
                if not _exists_already(error):
                    raise
                head = self._system.call_s3("head_object", Bucket=self.bucket, Key=self._below("") + key)
                return head["Metadata"].get(SHA256) == sha256
            return True

    def download(self, key: str, path: Path) -> None:
        """Raises FileNotFoundError where there is no such object."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._clear_errors():
            self._system.get_file(self._path(key), str(path), **PARTS)

    def _page(self, below: str, **options: Any) -> dict[str, Any]:
        # Not the file system's `find`: where nothing is listed it asks again, and what came in between it takes for a folder.
        try:
            with self._clear_errors():
                return self._system.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self._below(below), **options)
        except FileNotFoundError as error:  # an answer, but none of S3: a listing is empty where nothing is
            raise StoreError(f"store {self.address}: wanted S3 at {self.endpoint or 'AWS'}, got {error}; check AWS_ENDPOINT_URL") from error

    def _below(self, key: str) -> str:
        return "".join(f"{part}/" for part in (self.prefix, key) if part)

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self._below('')}{key}"

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        import aiohttp
        from botocore.exceptions import BotoCoreError

        try:
            yield
        except (StoreError, FileExistsError):
            raise
        except (OSError, BotoCoreError, aiohttp.ClientError) as error:
            clear = self._clear(error)
            if clear is error:
                raise
            raise clear from error

    def _clear(self, error: Exception) -> Exception:
        """The error in words that say what to do; an absent object's stays as it is."""
        from botocore.exceptions import NoCredentialsError, PartialCredentialsError

        where, at, code = f"store {self.address}", self.endpoint or "AWS", _code(error)
        if isinstance(error, NoCredentialsError | PartialCredentialsError):
            return StoreError(f"{where}: wanted credentials, got none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if code == "NoSuchBucket":
            return StoreError(f"{where}: wanted the bucket {self.bucket} at {at}, got none; create it or choose another --store")
        if code in REFUSED or isinstance(error, PermissionError):
            return StoreError(f"{where}: wanted leave to read and write at {at}, got {first_line(error)}; check AWS_ACCESS_KEY_ID")
        if isinstance(error, FileNotFoundError):
            return error
        return StoreConnectionError(f"{where}: wanted an answer from {at}, got {first_line(error)}; check AWS_ENDPOINT_URL and network")


def endpoint() -> str | None:
    """Given to the client by us, not found by it, so that it addresses a bucket by path: `minio:9000/bucket`, not `bucket.minio:9000`."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def split_address(address: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix` or `s3:bucket/prefix`. Raises StoreError where there is no bucket."""
    bucket, _, prefix = address.removeprefix("s3:").lstrip("/").partition("/")
    if not bucket:
        raise StoreError(f"store {address}: wanted s3://bucket/prefix, got no bucket")
    return bucket, "/".join(part for part in prefix.split("/") if part)


def _code(error: BaseException) -> str | None:
    """S3's word for the error, which s3fs keeps as its cause."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    return response.get("Error", {}).get("Code")


def _exists_already(error: OSError) -> bool:
    return isinstance(error, FileExistsError) or _code(error) in {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
