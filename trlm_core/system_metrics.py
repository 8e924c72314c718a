"""The machine while it trains: CPU, memory, disk, network and GPUs, into the spool under the names that MLflow's page knows."""

import contextlib
import logging
import threading
from collections.abc import Iterator

from trlm_core.metric_spool import MetricSpool
from trlm_core.tracking import SystemReadings

logger = logging.getLogger(__name__)

SECONDS = 10.0  # between two readings
CLOCK = "system/cpu_utilization_percentage"  # read every time: a resumed training counts on from its last


@contextlib.contextmanager
def system_metrics(spool: MetricSpool, seconds: float = SECONDS) -> Iterator[None]:
    """Read the machine every so often until the block ends, and once more then. For one process of a machine."""
    ended = threading.Event()
    reader = threading.Thread(target=_read, args=(spool, seconds, ended), daemon=True, name="system-metrics")
    reader.start()
    try:
        yield
    finally:
        ended.set()
        reader.join(seconds)


def _read(spool: MetricSpool, seconds: float, ended: threading.Event) -> None:
    try:
        readings, step, last = SystemReadings(), spool.next_step(CLOCK), False
        while not last:
            last = ended.wait(seconds)
            spool.log(readings.take(), step)
            step += 1
    except Exception:  # a driver's, say: nobody waits for this thread, and a training does not fail for it
        logger.exception("the machine is not read any more; the training goes on")
