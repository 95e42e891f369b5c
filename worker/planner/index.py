"""Reads package indexes (PEP 503, PEP 691) and downloads files from them."""

import base64
import hashlib
import html.parser
import http.client
import json
import os
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from fault import Fault
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_PAGE = 128 << 20
MAX_SDIST = 1 << 30
TRIES = 3


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


def _opener(follow):
    cafile = os.environ.get("SSL_CERT_FILE")
    handlers = [urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=cafile))]
    if not follow:
        handlers.append(_NoRedirect())
    return urllib.request.build_opener(*handlers)


class _Anchors(html.parser.HTMLParser):
    def __init__(self, base):
        super().__init__()
        self.base, self.files, self._attrs = base, [], None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "base" and attrs.get("href"):
            self.base = urllib.parse.urljoin(self.base, attrs["href"])
        if tag == "a" and attrs.get("href"):
            self._attrs = attrs

    def handle_data(self, data):
        if self._attrs is None or not data.strip():
            return
        url, fragment = urllib.parse.urldefrag(self._attrs["href"])
        algorithm, _, digest = fragment.partition("=")
        self.files.append(
            {
                "filename": data.strip(),
                "url": url,
                "hashes": {algorithm: digest} if digest else {},
                "requires-python": self._attrs.get("data-requires-python"),
                "yanked": "data-yanked" in self._attrs,
            }
        )
        self._attrs = None


class Index:
    """One index. Pages are read once; any thread may ask. The refinery's own index is read without following redirects, because
    one leads to somebody else's files."""

    def __init__(self, url, own):
        parts = urllib.parse.urlsplit(url)
        self.own, self.auth = own, None
        if parts.username:
            pair = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
            self.auth = "Basic " + base64.b64encode(pair.encode()).decode()
        self.host = parts.netloc.rpartition("@")[2]
        self.url = urllib.parse.urlunsplit(parts._replace(netloc=self.host)).rstrip("/") + "/"
        self._open = _opener(follow=not own)
        self._pages, self._lock = {}, threading.Lock()

    def open(self, url, accept="*/*"):
        """Opens url, with this index's credentials where it is on the same host. None: it does not exist."""
        request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "wheelrefinery"})
        if self.auth and urllib.parse.urlsplit(url).netloc == self.host:
            request.add_unredirected_header("Authorization", self.auth)
        trouble = None
        for attempt in range(TRIES):
            if attempt:
                time.sleep(0.3 * 4**attempt)
            try:
                return self._open.open(request, timeout=60)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in (404, 410) or (self.own and error.code in (301, 302, 303, 307, 308)):
                    return None
                trouble = f"it answered {error.code}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, http.client.HTTPException) as error:
                trouble = str(getattr(error, "reason", error))
        raise self._fault(url, trouble)

    def _fault(self, url, trouble):
        host = urllib.parse.urlsplit(url).netloc
        if self.own:
            return Fault("unavailable", f"the refinery's own index at {host} cannot be read: {trouble}")
        return Fault(
            "download", f"{host} cannot be reached: {trouble}: check the network, proxy and certificate settings of the worker"
        )

    def files(self, project):
        """The files of a project as PEP 691 says; none where the index does not have it."""
        with self._lock:
            lock, page = self._pages.setdefault(project, (threading.Lock(), []))
        with lock:
            if not page:
                page.append(self._load(project))
        return page[0]

    def _load(self, project):
        url = self.url + project + "/"
        response = self.open(url, ACCEPT)
        if response is None:
            return []
        try:
            with response:
                data = response.read(MAX_PAGE + 1)
                if len(data) > MAX_PAGE:
                    raise Fault("download", f"the page of {project} is over {MAX_PAGE} bytes")
                if "json" in response.headers.get_content_type():
                    files = json.loads(data)["files"]
                else:
                    page = _Anchors(response.url)
                    page.feed(data.decode("utf-8", "replace"))
                    files, url = page.files, page.base
        except (ValueError, KeyError, TypeError) as error:
            raise Fault("download", f"the index's page of {project} cannot be understood: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._fault(url, error) from error
        return [dict(file, url=urllib.parse.urljoin(url, file["url"])) for file in files]

    def wheel(self, project, version, ranks, python, yanked=False):
        """The wheel of that version that fits best, as an events.File; None where none fits. ranks: tag → place, best first. Of the
        refinery's own, a yanked one is taken only with yanked, where there is no other (PEP 592)."""
        best = None
        for file in self.files(project):
            name = file["filename"]
            withdrawn = self.own and file.get("yanked", False) is not False
            if not name.endswith(".whl") or (withdrawn and not yanked):
                continue
            try:
                found, v, build, tags = parse_wheel_filename(name)
            except (InvalidWheelFilename, InvalidVersion):
                continue
            fitting = [ranks[tag] for tag in tags if tag in ranks]
            if canonicalize_name(found) != project or v != version or not fitting or not _runs(file, python):
                continue
            key = (withdrawn, min(fitting), tuple(-n if isinstance(n, int) else 0 for n in build))
            if _sha256(file) and (best is None or key < best[0]):
                best = (key, file)
        return _file(best[1]) if best else None

    def sdist(self, project, version):
        """The source distribution of that version, as an events.File; None where there is none with a SHA-256."""
        found = []
        for file in self.files(project):
            try:
                name, v = parse_sdist_filename(file["filename"])
            except (InvalidSdistFilename, InvalidVersion):
                continue
            if name == project and v == version and _sha256(file):
                found.append(file)
        found.sort(key=lambda file: file["filename"].endswith(".zip"))
        return _file(found[0]) if found else None

    def requires_python(self, project, filename):
        return next((f.get("requires-python") or "" for f in self.files(project) if f["filename"] == filename), "")

    def download(self, file, cache):
        """Brings a file into the folder cache, under its SHA-256, and returns its path there."""
        want = file["sha256"].lower()
        folder = os.path.join(cache, want[:2])
        path = os.path.join(folder, want)
        if os.path.exists(path):
            os.utime(path)
            return path
        response = self.open(file["url"])
        if response is None:
            raise Fault("download", f"{file['filename']} is not at its address any more ({file['url']})")
        os.makedirs(folder, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with response, tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
            try:
                while block := response.read(1 << 20):
                    size += len(block)
                    if size > MAX_SDIST:
                        raise Fault("download", f"{file['filename']} is over {MAX_SDIST >> 20} MiB, which is the limit")
                    digest.update(block)
                    out.write(block)
                if digest.hexdigest() != want:
                    raise Fault(
                        "download",
                        f"{file['filename']} has SHA-256 {digest.hexdigest()}, not {want} as it should: it is not what was asked for",
                    )
                os.chmod(out.name, 0o644)
                os.rename(out.name, path)
            except (OSError, http.client.HTTPException) as error:
                os.unlink(out.name)
                raise Fault("download", f"{file['filename']} could not be downloaded: {error}") from error
            except Fault:
                os.unlink(out.name)
                raise
        return path


def _runs(file, python):
    try:
        return SpecifierSet(file.get("requires-python") or "").contains(python, prereleases=True)
    except InvalidSpecifier:
        return True


def _sha256(file):
    digest = (file.get("hashes") or {}).get("sha256", "")
    return digest if len(digest) == 64 and all(c in "0123456789abcdefABCDEF" for c in digest) else ""


def _file(file):
    url = urllib.parse.urldefrag(file["url"])[0]
    made = {"filename": file["filename"], "url": url, "sha256": _sha256(file).lower()}
    if isinstance(file.get("size"), int):
        made["size"] = file["size"]
    return made
