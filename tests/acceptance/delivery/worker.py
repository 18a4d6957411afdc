"""A worker of the tests that may be broken on purpose: see `mutations`, and `worker` above."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import worker
from acceptance.delivery import mutations

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    options = json.loads(sys.argv[1])
    mutations.apply(options["mutation"])
    asyncio.run(worker.main(options))
