"""Whether a job was put back into SLURM's queue, and so runs the same command once more: what is
to be removed at the start (--fresh, --from-task) must be removed in its first start alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def start_of_job(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
  """The job that this process is of, and how often it was started again; None: it is of none."""
  job = environment.get("SLURM_JOB_ID")
  restarts = environment.get("SLURM_RESTART_COUNT", "0")
  return {"job": job, "restarts": int(restarts)} if job and restarts.isdecimal() else None


def is_later(now: dict[str, Any] | None, then: Any) -> bool:
  """Whether this is a later start of the same job."""
  return (
    now is not None
    and isinstance(then, dict)
    and then.get("job") == now["job"]
    and isinstance(then.get("restarts"), int)
    and then["restarts"] < now["restarts"]
  )
