"""The worker's planner: a job as one line of JSON on stdin, the answer as the last line of JSON on stdout, progress on stderr.

It decides what of Python's packaging rules there is to decide (PEP 425, 440, 503, 508, 517, 691), with `packaging` and uv. It runs no
code of a package itself: what may run such code goes to the Go side (see remote.py), which runs it as another user and under limits.
"""

import json
import sys
import time

from fault import Fault
from plan import Planner
from prepare import Workshop
from remote import Remote


def answer(remote, job):
    shop = Workshop(job, remote)
    if job["do"] == "plan":
        return Planner(job, shop).plan()
    if job["do"] == "prepare":
        return shop.prepare(job)
    raise ValueError("unknown job " + job["do"])


def main():
    began = time.monotonic()
    remote = Remote(sys.stdin.buffer, sys.stdout.buffer)
    try:
        result = answer(remote, remote.job())
    except Fault as fault:
        result = {"error": fault.json()}
    result["duration_ms"] = round((time.monotonic() - began) * 1000)
    remote.send({"result": result})


if __name__ == "__main__":
    main()
