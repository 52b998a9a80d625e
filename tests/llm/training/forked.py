"""Ranks as forked processes, for the scripts that a test runs in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from firsthand.llm.training.distributed import World, joined_world


def on_ranks(ranks: int, work: Callable[[World], Any]) -> Any:
    """Do the work on each of the ranks and wait for all; what the first one returned.

    Args:
        ranks: how many are forked.
        work: returns plain JSON values.
    Raises:
        SystemExit: a rank failed; its traceback is on standard error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        children = []
        for rank in range(ranks):
            child = os.fork()
            if child:
                children.append(child)
                continue
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                with joined_world("cpu") as world:
                    found = work(world)
                    if world.is_first:
                        result.write_text(json.dumps(found))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        if any(os.waitpid(child, 0)[1] for child in children):
            raise SystemExit(f"a rank of {ranks} failed")
        return json.loads(result.read_text())
