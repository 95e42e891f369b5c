"""Trouble that has a class and a reason, for the person who asked."""


class Fault(Exception):
    """cls is one of the failure classes, or "unavailable": the refinery's own index did not answer, so somebody else may try later."""

    def __init__(self, cls, reason, detail=()):
        super().__init__(reason)
        self.cls, self.reason, self.detail = cls, reason, list(detail)
        self.backend = ""  # that was asked (PEP 517)

    def json(self):
        return {"class": self.cls, "reason": " ".join(self.reason.split())[:500], "detail": self.detail[-40:], "backend": self.backend}


def lines(text, last=40):
    """The last lines of a tool's output that say something."""
    return [line.rstrip()[:500] for line in text.splitlines() if line.strip()][-last:]
