"""`python -m tests.rehearsal.command KEY=VALUE ...`: the command line on a rehearsed GPU; its waits go to $WAITS."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.rehearsal.claims import rehearsal

from lifecycle.__main__ import main

if __name__ == "__main__":
    with rehearsal() as device:
        try:
            main()
        finally:
            Path(os.environ["WAITS"]).write_text(json.dumps(device.waits))
            sys.stdout.flush()
