"""The command line: parse, check, hand over to Hydra, run the task, turn mistakes into one line.

Nothing here or before the task imports torch, so that --help and every configuration mistake answer at once.
"""

from __future__ import annotations

import ctypes
import os
import sys
import traceback

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from src.config import compose, help
from src.errors import UserError
from src.tasks import multirun

DONE, BUG, MISTAKE, INTERRUPTED = 0, 1, 2, 130


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def start(cfg: DictConfig) -> float | None:
    """Run one job; Hydra calls this once, or once per job of a multirun."""
    return multirun.run_job(cfg, report=report)


def report(error: Exception) -> int:
    """Print `error` for the user, and return the exit code that stands for it."""
    if isinstance(error, UserError):
        print("error:", " ".join(str(error).split()), file=sys.stderr, flush=True)
        return MISTAKE
    traceback.print_exception(error)
    return BUG


def keep_freed_memory() -> None:
    """Let glibc reuse freed tensors instead of giving their pages back to the system; elsewhere nothing happens.

    Otherwise the gradients of a large layer are written to fresh pages in every step, and making these is up to a
    sixth of it. The two numbers are mallopt's M_MMAP_MAX and M_TRIM_THRESHOLD; `MALLOC_MMAP_MAX_` still decides.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and "MALLOC_MMAP_MAX_" not in os.environ:
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def main() -> int:
    """Run the command line of this process and return its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach us instead of Hydra's own printer
    # Threads that wait for each other spin; on a core that others use too, that made a step 15 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    keep_freed_memory()
    try:
        if {"-h", "--help"} & set(sys.argv[1:]):
            print(help.text())
            return DONE
        words = compose.nested_groups_named(compose.task_keys_named(compose.flags_first(sys.argv[1:])))
        sys.argv[1:] = words + compose.rank_overrides(words, os.environ)
        line = compose.parse(sys.argv[1:])
        if line.checked:
            compose.preflight(line)
        start()
    except (HydraException, OmegaConfBaseException) as error:
        return report(UserError(compose.hydra_message(error)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place that turns a bug into exit code 1
        return report(error)
    return multirun.exit_code()


if __name__ == "__main__":
    sys.exit(main())
