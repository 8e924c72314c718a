"""Flow `reconcile`: end what dead processes left running."""

import os

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from tasks.reconcile import reconcile
from trlm_core.tracking import Tracker


@flow(name="reconcile", flow_run_name="runs")
def reconcile_runs(tracking_uri: str | None = None) -> State[None]:
    """End flow runs, task runs and MLflow runs whose process is gone.

    Args:
        tracking_uri: MLflow's address. Empty: the worker's MLFLOW_TRACKING_URI.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ValueError("tracking_uri: wanted MLflow's address, got none; set it, or MLFLOW_TRACKING_URI in the worker's environment")
    ended = reconcile(Tracker(uri))
    return Completed(message="; ".join(ended) or "nothing was left open")
