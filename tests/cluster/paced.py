"""python paced.py CONFIG.yaml KEY=VALUE...: trains, two seconds for an epoch of stage 3 until a file `hurry` is here.

So a test has the time that nodes need to come and go, on a fast machine and on a busy one, and the rest ends soon.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import m3dist
from m3dist import config


class Paced(m3dist.Callback):
    def on_epoch(self, stage: str, epoch: int, values: dict[str, float]) -> None:
        if stage == "merge" and not Path("hurry").exists():
            time.sleep(2)


if __name__ == "__main__":
    m3dist.train(None, config.load(sys.argv[1], sys.argv[2:]), callbacks=[Paced()])
