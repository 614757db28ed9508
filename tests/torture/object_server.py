"""An S3 server behind a proxy that disturbs its requests, as a process: ``python -m tests.torture.object_server``.

Its own process, because the torture forks its commands and threads do not survive a fork. It prints the server's
address and the proxy's, then answers each line on stdin: "SEED SHARE" sets a plan, "count" gives the faults so far.
"""

from __future__ import annotations

import json
import sys

from tests.support.object_stores import start_moto
from tests.support.proxy import random_faults, start_proxy


def main() -> None:
    """Serve until stdin ends."""
    with start_moto() as server, start_proxy(server) as proxy:
        print(server, proxy.endpoint, flush=True)
        for line in sys.stdin:
            if line.strip() == "count":
                print(json.dumps(proxy.faults), flush=True)
            else:
                seed, share = line.split()
                proxy.plan = random_faults(int(seed), float(share))
                print("set", flush=True)


if __name__ == "__main__":
    main()
