"""The tools of a job: uv, the indexes, and environments to build in.

uv's cache and the environments belong to the planner's user; code of packages runs in boxes, as other users, and reads them only. So
nothing that a package's build does can end up in another package's build.
"""

import json
import os
import re
import subprocess
import sys
import threading
from collections import namedtuple
from concurrent.futures import Future

from fault import Fault, lines
from index import Index
from packaging.requirements import InvalidRequirement, Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

HOOKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hooks.py")

Pin = namedtuple("Pin", "name version via")  # via: the names of what needs it
Env = namedtuple("Env", "path pins")

NETWORK = re.compile(
    r"Failed to fetch|error sending request|dns error|Connection refused|Network is unreachable|tunnel|timed out|Request failed after"
    r"|certificate|Could not connect|Network connectivity is disabled",
    re.I,
)
ABSENT = re.compile(r"(?:Because |and |\s)([A-Za-z0-9][A-Za-z0-9._-]*) was\s+not\s+found\s+in\s+the\s+package\s+registry")
UNREAD = re.compile(r"Couldn't parse|Failed to parse|Expected|Unexpected", re.I)


class Workshop:
    def __init__(self, job, remote):
        self.remote = remote
        self._uv, self._python, self._work, self._cache = job["uv"], job["interpreter"], job["work"], job["cache"]
        self.own = Index(job["index_url"], own=True) if job.get("index_url") else None
        self.upstream = Index(job["upstream"], own=False)
        self.environment = {
            "UV_DEFAULT_INDEX": job["upstream"],
            "UV_NO_CONFIG": "1",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "NO_COLOR": "1",
        }
        if self.own:
            self.environment["UV_INDEX"] = job["index_url"]
        # What recipes add: constraints of build requirements, and variables for hooks.
        self.limits = "\n".join(_build_requirements(job.get("limits") or []))
        self.variables = job.get("env") or {}
        self.ranks = {tag: rank for rank, tag in enumerate(sys_tags())}
        self.python_version = "%d.%d.%d" % sys.version_info[:3]
        self._envs, self._lock, self._count = {}, threading.Lock(), 0

    def _path(self, name):
        with self._lock:
            self._count += 1
            return os.path.join(self._work, f"{self._count}-{name}")

    def _write(self, name, text):
        path = self._path(name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def uv(self, args, box=None, timeout=300, result=None, own=True):
        """Runs uv, here or in a box, with the refinery's own index or without. Answers code, output and the content of the box's file
        `result`."""
        env = {name: value for name, value in self.environment.items() if own or name != "UV_INDEX"}
        argv = [self._uv, *args]
        if box:
            env["UV_CACHE_DIR"] = "{box}/uv"
            made = self.remote.run(box, argv, env, result, timeout)
            if made["verdict"]:
                raise Fault("resolve", f"uv was stopped: {made['verdict']}", lines(made["output"]))
            return made["code"], made["output"], made["result"]
        env["UV_CACHE_DIR"] = os.path.join(self._cache, "uv")
        try:
            done = subprocess.run(
                argv, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, text=True,
                errors="replace", check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise Fault("download", f"uv did not end within {timeout} s: check the network of the worker") from error
        return done.returncode, done.stdout, ""

    def compile(self, requirements, constraints="", box=None, upgrade=False):
        """Resolves requirements to pins. In a box, sources may be built to learn their metadata; here, only wheels are looked at."""
        number = os.path.basename(self._path("pins"))
        out = "{box}/" + number if box else os.path.join(self._work, number)
        args = ["pip", "compile", self._write("requirements.in", requirements), "--output-file", out, "--no-header", "--quiet"]
        args += ["--annotation-style", "split", "--python", self._python]
        args += ["--index-strategy", "unsafe-best-match" if upgrade else "unsafe-first-match"]
        if constraints:
            args += ["--constraints", self._write("constraints.txt", constraints)]
        if not box:
            args += ["--only-binary", ":all:"]
        code, output, text = self.uv(args, box, result=number if box else None)
        if code and self.own and "yanked" in output:
            # For uv, a version that the first index has yanked is yanked, whatever the others have.
            code, output, text = self.uv(args, box, result=number if box else None, own=False)
        if code:
            raise self.why(output)
        if not box:
            with open(out) as file:
                text = file.read()
        return _pins(text)

    def why(self, output):
        """The fault that uv's output tells of."""
        detail = lines(output)
        said = " ".join(output.split())
        if self.own and self.own.host in said and NETWORK.search(said):
            return Fault("unavailable", "the refinery's own index cannot be read", detail)
        if NETWORK.search(said):
            what = re.search(r"Failed to fetch: `([^`@]*)`", said)
            host = f" ({what[1]})" if what else ""
            reason = f"the package index cannot be reached{host}: check the worker's network, proxy and certificate settings"
            return Fault("download", reason, detail)
        if absent := ABSENT.search(output):
            return Fault("resolve", f"{absent[1]}: there is no such package in the index: check its name", detail)
        said = re.sub(r"^.*?(No solution found when resolving dependencies:|error:)\s*", "", said).lstrip("×╰─▶ ")
        if UNREAD.search(said):
            return Fault("resolve", f"the requirements cannot be read: {said}", detail)
        return Fault("resolve", f"the requirements do not fit together: {said}", detail)

    def environment_for(self, requirements, box):
        """An environment with the requirements, from wheels. Where one of them is there as source only, it has pins but no path yet."""
        key = tuple(sorted(set(requirements)))
        with self._lock:
            future, mine = self._envs.get(key), False
            if future is None:
                future, mine = self._envs.setdefault(key, Future()), True
        if mine:
            try:
                future.set_result(self._environment(key, box))
            except Exception as error:
                future.set_exception(error)
        return future.result()

    def _environment(self, requirements, box):
        text = "\n".join(requirements)
        try:
            pins = self.compile(text, self.limits) if text else []
        except Fault as fault:
            if fault.cls != "resolve":
                raise
            pins = None
        if pins is None:
            return Env(None, [f"{p.name}=={p.version}" for p in self.compile(text, self.limits, box=box)])
        return self.install([f"{p.name}=={p.version}" for p in pins])

    def install(self, pins):
        path = self._path("env")
        code, output, _ = self.uv(["venv", "--quiet", "--python", self._python, path])
        args = ["pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--index-strategy", "unsafe-first-match"]
        for own in (True, False):
            part = [pin for pin in pins if self._withdrawn(pin) is not own]
            if code == 0 and part:
                listed = self._write("pins.txt", "\n".join(part))
                code, output, _ = self.uv([*args, "--python", path + "/bin/python", "--requirements", listed], timeout=600, own=own)
        if code:
            raise self.why(output)
        return Env(path, pins)

    def _withdrawn(self, pin):
        """Of that version, the refinery has nothing but yanked wheels, which a pin of our own would let in."""
        name, _, version = pin.partition("==")
        try:
            asked = (canonicalize_name(name), Version(version), self.ranks, self.python_version)
        except InvalidVersion:
            return False
        return bool(self.own and not self.own.wheel(*asked) and self.own.wheel(*asked, yanked=True))

    def _hook(self, box, command, *args, python_path=""):
        result = os.path.basename(self._path(command + ".json"))
        env = {**self.variables, "PATH": python_path + "/bin:/usr/bin:/bin", "VIRTUAL_ENV": python_path} if python_path else {}
        argv = [sys.executable, "-I", HOOKS, command, "{box}/" + result, *args]
        made = self.remote.run(box, argv, env, result, timeout=300)
        if made["verdict"]:
            raise Fault("backend", f"the build backend was stopped: {made['verdict']}", lines(made["output"]))
        try:
            answer = json.loads(made["result"])
        except ValueError:
            answer = {"problem": "it gave no answer"}
        if not isinstance(answer, dict) or answer.get("problem"):
            problem = answer.get("problem") if isinstance(answer, dict) else "no answer"
            raise Fault("backend", str(problem), lines(made["output"]))
        return answer

    def requirements(self, sdist, box, extra=()):
        """What building the sdist needs, as requirement texts: what pyproject.toml says and what the backend's hook adds. The second
        answer says whether the hook could be asked."""
        system = self._hook(box, "unpack", sdist, "{box}/source")
        wanted = {*_build_requirements(system["requires"]), *extra}
        env = self.environment_for(wanted, box)
        if not env.path:
            return sorted(wanted), False
        backend = json.dumps({"backend": system["backend"], "backend_path": system["backend_path"]})
        try:
            more = self._hook(box, "requires", system["source"], env.path + "/bin/python", backend, python_path=env.path)
        except Fault as fault:
            fault.backend = str(system["backend"])
            raise
        return sorted({*wanted, *_build_requirements(more["requires"])}), True

    def fetch(self, name, version, sdist=None):
        """The sdist and where it lies here."""
        try:
            sdist = sdist or self.upstream.sdist(canonicalize_name(name), Version(version))
        except InvalidVersion as error:
            raise Fault("resolve", f"{version!r} is not a version (PEP 440)") from error
        if sdist is None:
            raise Fault("resolve", f"{name} {version} has no source distribution in the index: there is nothing to build it from")
        return sdist, self.upstream.download(sdist, os.path.join(self._cache, "sdists"))

    def prepare(self, job):
        """Gets the sdist and makes the environment that it is built in, for the box "build"."""
        sdist, path = self.fetch(job["name"], job["version"], job.get("sdist"))
        extra = _build_requirements(job.get("extra") or [])
        if job.get("constraints") and not extra and not self.limits:
            env = self.install(_pinned(job["constraints"]))
        else:
            wanted, _ = self.requirements(path, "build", extra)
            env = self.environment_for(wanted, "build")
            if not env.path:
                raise Fault("resolve", f"of its build requirements ({', '.join(env.pins)}), some have no wheel yet: build those first")
        # A name of its own: uv wants the sdist's file name, and the cache has hashes.
        named = os.path.join(os.path.dirname(self._path("sdist")), os.path.basename(sdist["filename"]))
        os.symlink(path, named)
        return {"sdist": sdist, "path": named, "env": env.path, "pins": env.pins}


def _build_requirements(texts):
    """Checks the requirements that a package states. An address is refused: what it names is not in an index."""
    made = []
    for text in texts:
        try:
            requirement = Requirement(text)
        except (InvalidRequirement, TypeError) as error:
            raise Fault("resolve", f"the build requirement {str(text)[:100]!r} cannot be read: {error}") from error
        if requirement.url:
            raise Fault("resolve", f"the build requirement {requirement.name} is given by address, which is not supported")
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            made.append(str(requirement))
    return made


def _pinned(constraints):
    for text in _build_requirements(constraints):
        requirement = Requirement(text)
        if [s.operator for s in requirement.specifier] != ["=="]:
            raise Fault("resolve", f"the build constraint {text[:100]!r} is not a pin")
    return list(constraints)


def _pins(text):
    """Reads what uv pip compile wrote: name==version, followed by comments that say what needs it."""
    pins = []
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("#"):
            needs = line.lstrip("# ").removeprefix("via").strip()
            if pins and needs:
                pins[-1].via.append(needs)
        elif "==" in line:
            name, _, version = line.partition("==")
            pins.append(Pin(canonicalize_name(name.strip()), str(Version(version.split()[0])), []))
    return pins
