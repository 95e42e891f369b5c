"""Makes a plan: which wheels a run needs, which of them must be built, from what, and in what order."""

import os
import re
import sys
import sysconfig
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from cycles import components
from fault import Fault
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import interpreter_name, interpreter_version
from packaging.utils import canonicalize_name
from packaging.version import Version

MAX_TEXT, MAX_LINES = 1 << 20, 5000
HASH = re.compile(r"\s--hash[=\s]sha256:([0-9a-fA-F]{64})\b")
HASHES = re.compile(r"\s--hash[=\s]\w+:[0-9a-fA-F]+\b")


def tags():
    """The tags of the target: this interpreter, this platform."""
    return interpreter_name() + interpreter_version(), re.sub(r"[.-]", "_", sysconfig.get_platform())


def requirements(text, what="requirements"):
    """Checks a requirements text line by line and gives {line number: (requirement, its hashes)}. Only names, versions, extras,
    markers and hashes are taken: nothing that reads files, runs programs or turns to another index."""
    if len(text) > MAX_TEXT or text.count("\n") > MAX_LINES:
        raise Fault("resolve", f"the {what} are over the limit of {MAX_LINES} lines or {MAX_TEXT >> 20} MiB")
    found, pending, start = {}, "", 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        start = number if not pending else start
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line, pending = re.sub(r"(^|\s)#.*$", "", pending + line).strip(), ""
        if not line:
            continue
        where = f"line {start} of the {what}"
        shown = line if len(line) <= 80 else line[:80] + "…"
        bare = HASHES.sub("", line)
        if bare.startswith("-") or " --" in bare:
            raise Fault("resolve", f"{where} ({shown}) is an option: only requirements and their --hash are accepted")
        try:
            requirement = Requirement(bare)
        except InvalidRequirement as error:
            if re.match(r"[./~]|[a-z+]+:|[a-zA-Z]:\\", bare) or bare.endswith((".whl", ".gz", ".zip")):
                raise Fault("resolve", f"{where} ({shown}) is a path or an address: only packages of the index are accepted") from error
            why = str(error).splitlines()[0]
            raise Fault("resolve", f"{where} ({shown}) cannot be read: {why}", str(error).splitlines()) from error
        if requirement.url:
            raise Fault("resolve", f"{where} ({shown}) names an address: only packages of the index are accepted")
        found[start] = (requirement, [h.lower() for h in HASH.findall(line)])
    return found


class Planner:
    def __init__(self, job, shop):
        self.job, self.shop = job, shop
        self.mode, self.names = job["build_mode"], {canonicalize_name(n) for n in job.get("names") or []}
        self.python_tag, self.platform_tag = tags()
        self.nodes, self.edges, self.warnings, self.hashes, self.pinned = {}, [], [], {}, set()

    def plan(self):
        self._fits()
        wanted = requirements(self.job["requirements"])
        limits = requirements(self.job.get("constraints") or "", "constraints")
        if not wanted:
            raise Fault("resolve", "the requirements name no package")
        for requirement, hashes in wanted.values():
            self.hashes.setdefault(canonicalize_name(requirement.name), set()).update(hashes)
        self.pinned = {canonicalize_name(r.name) for r, _ in [*wanted.values(), *limits.values()] if _exact(r)}
        pins = self.shop.compile(_text(wanted), _text(limits), box="resolve", upgrade=self.job.get("strategy") == "upgrade")
        self._say(f"{len(pins)} packages")
        if missing := self.names - {pin.name for pin in pins} if self.mode == "names" else set():
            raise Fault("resolve", f"{', '.join(sorted(missing))}: to be built, but the requirements do not need it")
        keys = {pin.name: f"{pin.name}/{pin.version}" for pin in pins}
        self.edges += [(keys[v], keys[pin.name], "runtime") for pin in pins for v in map(canonicalize_name, pin.via) if v in keys]
        pool = ThreadPoolExecutor(8)
        try:
            self._grow(pool, [(pin.name, pin.version, True) for pin in pins])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        self._break_cycles()
        self._prune()
        edges = [{"from": a, "to": b, "kind": kind} for a, b, kind in sorted(set(self.edges))]
        nodes = [self.nodes[key] for key in sorted(self.nodes)]
        for node in nodes:
            node.pop("fallback", None)
        return {
            "nodes": nodes, "edges": edges, "warnings": self.warnings, "python_tag": self.python_tag, "platform_tag": self.platform_tag,
        }  # fmt: skip

    def _fits(self):
        here = "%d.%d" % sys.version_info[:2]
        python, platform = self.job.get("python"), self.job.get("platform")
        if (python and python not in (here, self.shop.python_version)) or (platform and platform != self.platform_tag):
            asked = " ".join(filter(None, ["Python " + python if python else "", platform]))
            raise Fault("resolve", f"the run is for {asked}; this worker has Python {here} on {self.platform_tag}")

    def _grow(self, pool, wanted):
        """Makes nodes for what is wanted and for what building that needs, until there is nothing new."""
        running = {}
        while wanted or running:
            for name, version, root in wanted:
                key = f"{name}/{version}"
                if key not in self.nodes:
                    self.nodes[key] = None
                    running[pool.submit(self._node, name, version, root)] = key
            wanted = []
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                key = running.pop(future)
                node, pins, warning = future.result()
                self.nodes[key] = node
                if warning:
                    self.warnings.append(warning)
                for name, _, version in (pin.partition("==") for pin in pins):
                    self.edges.append((key, f"{name}/{version}", "build"))
                    wanted.append((name, version, False))

    def _node(self, name, version, root):
        shop, v = self.shop, Version(version)
        node = {
            "name": name, "version": version, "python_tag": self.python_tag, "platform_tag": self.platform_tag, "root": root,
        }  # fmt: skip
        own = shop.own and shop.own.wheel(name, v, shop.ranks, shop.python_version, yanked=name in self.pinned)
        if own:
            return {**node, "action": "reuse", "reason": "own-wheel", "wheel": own, "own": True}, [], ""
        published = shop.upstream.wheel(name, v, shop.ranks, shop.python_version)
        sdist = shop.upstream.sdist(name, v)
        asked = self._asked(name, root)
        if published and not (asked and sdist):
            reason = "no-sdist" if asked else "published-wheel"
            return {**node, "action": "reuse", "reason": reason, "wheel": published}, [], ""
        if not sdist:
            raise Fault("resolve", f"{name} {version} has neither a source distribution nor a wheel that fits {self.python_tag}")
        allowed = self.hashes.get(name) if root else None
        if allowed and sdist["sha256"] not in allowed:
            raise Fault("resolve", f"{name} {version}: none of its --hash values is that of {sdist['filename']} ({sdist['sha256']})")
        yanked = shop.own and shop.own.wheel(name, v, shop.ranks, shop.python_version, yanked=True)
        node.update(action="build", reason="yanked" if yanked else asked or "no-wheel", sdist=sdist, fallback=published)
        if said := shop.upstream.requires_python(name, sdist["filename"]):
            node["requires_python"] = said
        pins, warning = self._constraints(node)
        node["constraints"] = pins
        return node, pins, warning

    def _asked(self, name, root):
        if self.mode == "bootstrap":
            return "asked" if root else "bootstrap"
        return "asked" if (self.mode == "all" and root) or (self.mode == "names" and name in self.names) else ""

    def _constraints(self, node):
        """The pins of what building the node needs. Trouble is left to its build, which has a log for it."""
        label = f"{node['name']} {node['version']}"
        box = f"{node['name']}-{node['version']}"
        try:
            _, path = self.shop.fetch(node["name"], node["version"], node["sdist"])
            wanted, asked = self.shop.requirements(path, box)
            self._say(f"{label} needs {', '.join(wanted) or 'nothing'} to build")
            warning = "" if asked else f"{label}: its build backend cannot be asked what else it needs before its own wheels are there"
            return self.shop.environment_for(wanted, box).pins, warning
        except Fault as fault:
            if fault.cls == "unavailable":
                raise
            return [], f"{label}: what its build needs is not known: {fault.reason}"

    def _break_cycles(self):
        """Where wheels need each other to be built, one of them is taken as published."""
        while True:
            graph = {key: [] for key, node in self.nodes.items() if node["action"] == "build"}
            for a, b, kind in self.edges:
                if kind == "build" and a in graph and b in graph:
                    graph[a].append(b)
            cycle = next((c for c in components(graph) if len(c) > 1 or c[0] in graph[c[0]]), None)
            if cycle is None:
                return
            inside = set(cycle)
            needed = {key: sum(key in graph[other] for other in inside) for key in cycle}
            choices = [key for key in cycle if self.nodes[key]["fallback"]]
            if not choices:
                raise Fault("resolve", f"{', '.join(sorted(cycle))} need each other to be built, and none has a published wheel")
            key = min(choices, key=lambda k: (self.nodes[k]["root"], -needed[k], k))
            node = self.nodes[key]
            for field in ("sdist", "constraints"):
                node.pop(field, None)
            node.update(action="reuse", reason="cycle", wheel=node["fallback"])
            self.edges = [e for e in self.edges if not (e[0] == key and e[2] == "build")]
            others = ", ".join(sorted(inside - {key})) or "itself"
            self.warnings.append(f"{key} is needed to build {others}, which it needs to be built: its published wheel is reused")

    def _prune(self):
        """Drops what only a broken cycle needed."""
        reached, pending = set(), [key for key, node in self.nodes.items() if node["root"]]
        while pending:
            key = pending.pop()
            if key not in reached:
                reached.add(key)
                pending += [b for a, b, _ in self.edges if a == key]
        self.nodes = {key: node for key, node in self.nodes.items() if key in reached}
        self.edges = [edge for edge in self.edges if edge[0] in reached]

    def _say(self, text):
        print(text, file=sys.stderr, flush=True)


def _exact(requirement):
    """A pin of one version lets a yanked file in (PEP 592)."""
    return any(s.operator == "===" or (s.operator == "==" and not s.version.endswith(".*")) for s in requirement.specifier)


def _text(found):
    return "".join(str(requirement) + os.linesep for requirement, _ in found.values())
