"""Run before a head pod ends (preStop): stop every Ray job and wait until it has saved its checkpoint.

It uses the jobs API and sends no signal itself. Ray sends a job one SIGTERM however often it is asked to stop it; a
second signal would make Volley exit at once, without a checkpoint.
"""

import sys
import time
from typing import Any

DASHBOARD = "http://127.0.0.1:8265"
WAIT_S = 130.0
"""A little more than RAY_JOB_STOP_WAIT_TIME_S, a little less than terminationGracePeriodSeconds."""


def stop_jobs(client: Any, wait_s: float) -> list[str]:
    """Stop all running jobs. Returns those that had not ended after `wait_s` seconds."""
    left = [job.submission_id for job in client.list_jobs() if job.submission_id and not job.status.is_terminal()]
    for job in left:
        client.stop_job(job)
    deadline = time.monotonic() + wait_s
    while left and time.monotonic() < deadline:
        time.sleep(0.2)
        left = [job for job in left if not client.get_job_status(job).is_terminal()]
    return left


def main() -> int:
    from ray.job_submission import JobSubmissionClient

    left = stop_jobs(JobSubmissionClient(DASHBOARD), WAIT_S)
    if left:
        print(f"still running after {WAIT_S:g} s: {', '.join(left)}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
