"""Starting a script in several processes, as torchrun would, but without its seconds."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Ended:
    code: int
    said: str


def launch(script, folder, *arguments, ranks=2, until=None, timeout=110):
    """What became of every rank, once all (or the first ``until``) have ended; none outlives the call."""
    started, processes = time.monotonic(), []
    for rank in range(ranks):
        environment = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)},
            **{"OMP_NUM_THREADS": "1", "RENDEZVOUS": f"file://{folder}/rendezvous"},
        }
        command = [sys.executable, str(Path(__file__).parent / script), str(folder), *arguments]
        said = (Path(folder) / f"said.{rank}").open("w")
        processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    try:
        while any(process.poll() is None for process in processes[:until]):
            assert time.monotonic() - started < timeout, "a rank hangs"
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        Ended(process.returncode, (Path(folder) / f"said.{rank}").read_text())
        for rank, process in enumerate(processes)
    ]
