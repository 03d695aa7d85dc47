"""What an ordinary sidecar's postStart hook runs: until it ends, no other container is started.

Imports little, since a pod's start waits for it.
"""

from __future__ import annotations

import http.client
import os
import time

from lattice_k8s_job import layout

PATIENCE = 300.0  # seconds; then the kubelet starts the sidecar anew
PAUSE = 0.1


def wait(patience: float = PATIENCE) -> int:
    """Until the sidecar is ready; the exit status, 1 when it is not in time."""
    port = int(os.environ.get("LATTICE_HEALTH_PORT") or layout.HEALTH_PORT)
    deadline = time.monotonic() + patience
    while not _ready(port):
        if time.monotonic() > deadline:
            return 1
        time.sleep(PAUSE)
    return 0


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
