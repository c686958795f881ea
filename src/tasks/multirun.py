"""One job of Hydra's, and what a multirun adds: failed jobs do not stop the others, and a table ends it."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from src.config.validate import Context, check
from src.errors import UserError

_PROCESS = os.getpid()
_exit_codes: list[int] = []
_log = logging.getLogger(__name__)
_LOST_WORKER = re.compile(r"DataLoader worker \(pid|DataLoader timed out")


def exit_code() -> int:
    """0, or the code of the first job that failed in this process."""
    return next((code for code in _exit_codes if code), 0)


def run_job(cfg: DictConfig, report: Callable[[Exception], int]) -> float | None:
    """Check `cfg`, run its task, and return the metric that a sweep optimises.

    In a single run a failure ends the process with its exit code. In a multirun it is reported, the
    remaining jobs still run, the sweeper sees NaN, and the process ends with the code of the first failure.
    SystemExit (143 after SIGTERM) always ends the whole process.
    """
    hydra_cfg = HydraConfig.get()
    is_multirun = hydra_cfg.mode == RunMode.MULTIRUN
    failed = True
    try:
        check(cfg, Context({k: str(v) for k, v in hydra_cfg.runtime.choices.items() if v is not None}, is_multirun))
        OmegaConf.resolve(cfg)  # other processes of the run know nothing of Hydra's values
        _write_config(cfg)
        value = _task(cfg)(cfg)
        failed = False
        return value
    except Exception as caught:
        if is_multirun and os.getpid() != _PROCESS:
            raise  # a parallel launcher carries it to the first process
        error = _explained(caught)
        _to_log_file(error)
        code = report(error)
        if not is_multirun:
            raise SystemExit(code) from None
        _exit_codes.append(code)
        return float("nan")
    finally:
        _finish_wandb(failed)


def _explained(error: Exception) -> Exception:
    """A lost loader worker as the user's error that it is: torch raises it wherever the program happens to be."""
    if isinstance(error, RuntimeError) and _LOST_WORKER.search(str(error)):
        reason = str(error).splitlines()[0].rstrip(". ")
        return UserError(
            f"a loader process was lost ({reason}), most often for want of memory; lower dataset.num_workers or "
            "dataset.batch_size, then go on where the run stopped with ckpt_path=last hydra.run.dir=RUN_FOLDER"
        )
    return error


def _write_config(cfg: DictConfig) -> None:
    """Leave the resolved configuration in the run folder, once for all processes of a job."""
    if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":
        folder = Path(cfg.paths.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(cfg, folder / "config.yaml")


def _task(cfg: DictConfig) -> Callable[[DictConfig], float | None]:
    name = f"src.tasks.{cfg.task.name}"
    if importlib.util.find_spec(name) is None:
        raise UserError(f"task={cfg.task.name} is not built in this version; see --help")
    run: Callable[[DictConfig], float | None] = importlib.import_module(name).run
    return run


def _finish_wandb(failed: bool) -> None:
    """Close the W&B run, or the next job of a multirun would write into it."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def _to_log_file(error: Exception) -> None:
    """Errors go to log.txt too, but not twice to the terminal."""
    text = str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
    record = logging.LogRecord("src.run", logging.ERROR, __file__, 0, text, None, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


class ComparisonTable(Callback):
    """Hydra callback: prints and writes one table of all jobs at the end of a multirun."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(str(config.hydra.sweep.dir))
        jobs = sorted((path.parent for path in folder.glob("**/.hydra")), key=lambda path: (len(path.name), path))
        runs = [path for path in jobs if (path / "metrics.json").is_file()]
        if len(runs) < len(jobs):
            absent = ", ".join(path.name for path in jobs if path not in runs)
            _log.warning("%d of %d jobs left no metrics.json: %s", len(jobs) - len(runs), len(jobs), absent)
        if not runs:
            return
        from src.reports.compare import compare_runs  # imports torch, which a mistake in the command line must not

        table = compare_runs(runs)
        table.print()
        table.write(folder)
