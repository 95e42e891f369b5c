"""Asks the Go side to run a command in a box: as an unprivileged user, in a folder of its own, with limits, killed to the last process."""

import json
import threading
from concurrent.futures import Future


class Remote:
    """One line of JSON each way. Any thread may call run."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._lock, self._waiting, self._last = threading.Lock(), {}, 0

    def job(self):
        job = json.loads(self._reader.readline())
        threading.Thread(target=self._read, daemon=True).start()
        return job

    def send(self, message):
        with self._lock:
            self._writer.write(json.dumps(message).encode() + b"\n")
            self._writer.flush()

    def run(self, box, argv, env=None, result=None, timeout=300):
        """Runs argv in the box of that name, which is made when first named and lives until the job ends.

        "{box}" in an argument or a variable stands for the box's folder. Answers {code, verdict, output, result}: verdict is empty
        unless a limit ended the command; output is the end of what it printed; result the content of the file `result` of the box.
        """
        future = Future()
        with self._lock:
            self._last += 1
            number = self._last
            self._waiting[number] = future
        self.send({"id": number, "box": box, "argv": argv, "env": env or {}, "file": result or "", "timeout_ms": timeout * 1000})
        return future.result()

    def _read(self):
        for line in self._reader:
            message = json.loads(line)
            self._waiting.pop(message["id"]).set_result(message)
        for future in self._waiting.values():
            future.set_exception(EOFError("the worker went away"))
