"""A gateway without a data plane: it acknowledges what it is told.

For more live peers than wireguard-go takes (65,536), and to tell the control plane's share of an
enrollment from the gateway's. ``python -m benchmarks.standin URL OVERLAY``, the token in
``LATTICE_TOKEN``; writes a line when it is in step.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

MOST = 1 << 20  # peers: it has none
REVISION = re.compile(r'"revision":(\d+)')


def main() -> None:
    """Until the control plane goes away."""
    url, overlay = sys.argv[1:]
    hello = {
        "type": "hello",
        "gateway": "default",
        "publicKey": base64.b64encode(os.urandom(32)).decode(),
        "endpoint": "127.0.0.1:51820",
        "address": str(ipaddress.IPv4Network(overlay)[1]),
        "overlay": overlay,
        "version": "0",
        "maxPeers": MOST,
    }
    with connect(
        url.replace("http", "ws", 1) + "/api/v1/gateway/stream",
        additional_headers={"Authorization": f"Bearer {os.environ['LATTICE_TOKEN']}"},
        max_size=None,
        compression=None,
    ) as socket:
        socket.send(json.dumps(hello))
        told = False
        try:
            for text in socket:
                assert isinstance(text, str)
                if '"last":false' in text[-20:]:
                    continue
                found = REVISION.search(text)
                assert found is not None
                socket.send(json.dumps({"type": "ack", "revision": int(found[1])}))
                if not told:
                    told = bool(sys.stdout.write("in step\n"))
                    sys.stdout.flush()
        except ConnectionClosed:
            pass


if __name__ == "__main__":
    main()
