"""How many processor threads a model runs on.

The number follows from the model's size and the machine's cores alone, never from how busy they are: sums are rounded
by the number of threads, and a run that is resumed must end with the same weights.
"""

from __future__ import annotations

import os

from reason2decide.parallel import cores

SMALL = 20_000_000  # ours: parameters under which a second thread waits more than it computes (docs/performance.md)


def threads_for(parameters: int) -> int:
    """Threads for a model of this many parameters on this machine: one for a small one, else one per core."""
    return 1 if parameters < SMALL else cores()


def limit_threads(parameters: int) -> None:
    """Let torch use `threads_for` threads in this process, unless OMP_NUM_THREADS says how many."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(threads_for(parameters))


def let_threads_sleep() -> None:
    """Let threads that wait for others sleep rather than spin; called before torch is imported.

    Beside another busy process, a thread that spins takes the time of the one that it waits for.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
