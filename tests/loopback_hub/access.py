"""Who may read and write on the loopback Hub.

One token may do all; a private repository has another one, for its readers. A public repository asks for none, and takes any: the Hub
itself refuses an invalid token there too (the fault REFUSED does).
"""

from tests.loopback_hub.replies import Denied
from tests.loopback_hub.repositories import Repositories, Repository

TOKEN = "hf_loopback_token"  # of the writer


def readable(repositories: Repositories, name: str, kind: str, token: str | None) -> Repository:
    """Raises Denied: the Hub does not tell a missing repository from one that is kept from the caller."""
    found = repositories.get(name, kind)
    if found is not None and (found.token is None or token in {found.token, TOKEN}):
        return found
    if token is None:
        raise Denied(401, "Invalid username or password.", "RepoNotFound")
    if found is not None and token not in repositories.tokens():
        raise _invalid()
    raise Denied(404, "Repository not found", "RepoNotFound")


def check_writer(repositories: Repositories, token: str | None, code: str | None = None) -> None:
    """Raises Denied; the code is what a call without a token gets. On https the clients guess it themselves from a repository's address."""
    if token is None:
        raise Denied(401, "Invalid username or password.", code)
    if token in repositories.tokens() - {TOKEN}:
        raise Denied(403, "You have read access but not the required permissions for this operation")
    if token != TOKEN:
        raise _invalid()


def _invalid() -> Denied:
    return Denied(401, "Invalid credentials in Authorization header")
