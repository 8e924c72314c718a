"""How flow runs end: their state's message says what they left, or why they left nothing."""

from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed

from trlm_core.artifacts.manifest import Manifest
from trlm_core.tracking import RunCancelledError


def left(*manifests: Manifest) -> State[None]:
    """Completed, with the addresses of what lies in the store now."""
    return Completed(message="; ".join(f"{manifest.address} ({manifest.counts_line or 'finished'})" for manifest in manifests))


def unchanged(*manifests: Manifest) -> State[None]:
    """Completed under the name Cached: everything was there, nothing was read."""
    return Completed(name="Cached", message="; ".join(f"{manifest.address} is what the sources still give" for manifest in manifests))


def reported(report: Manifest) -> State[None]:
    counts = report.counts
    return Completed(message=f"{counts['goals_reached']} of {counts['goals']} goals reached; {report.address}")


def cancelled(error: RunCancelledError) -> State[None]:
    return Cancelled(message=str(error))
