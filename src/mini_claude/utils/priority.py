"""Letting others go first."""

import os
import time
from pathlib import Path
from typing import Final

AUTOGROUP: Final = Path("/proc/self/autogroup")
ATTEMPTS: Final = 20
RETRY_SECONDS: Final = 0.1


def lower_priority(nice: int) -> None:
    """Be nicer by so much than whoever started this process.

    Where Linux groups processes by session (autogroup), nice values count within a session alone: one with a session
    of its own would still get half of a core that somebody else uses. So the group is made as nice as its leader.
    """
    own = os.nice(nice)
    if os.getsid(0) != os.getpid():  # others are in the group who have not asked for it
        return
    for _ in range(ATTEMPTS):
        try:
            AUTOGROUP.write_text(str(own))
        except BlockingIOError:  # the kernel takes ten changes a second from all processes together
            time.sleep(RETRY_SECONDS)
        except OSError:  # no Linux, or one without groups
            return
        else:
            return
