"""What has to touch a package's own files or run its code. Runs in a box only: python hooks.py COMMAND RESULT …; RESULT gets JSON.

unpack RESULT SDIST DIR            the build system that pyproject.toml names
requires RESULT DIR PYTHON JSON    what get_requires_for_build_wheel says, run by PYTHON
check RESULT DIR NAME VERSION      the one wheel in DIR, which must be what it says it is
"""

import email.parser
import glob
import json
import os
import sys
import tarfile
import zipfile

MAX_FILES = 200_000


def unpack(sdist, folder):
    """Unpacks within folder. A path that leads out of it, a link or a device is an error; the box holds what this misses."""
    os.makedirs(folder)
    root = os.path.realpath(folder)

    def inside(name):
        return os.path.realpath(os.path.join(root, name)).startswith(root + os.sep)

    if zipfile.is_zipfile(sdist):
        with zipfile.ZipFile(sdist) as archive:
            archive.extractall(root)
    else:
        with tarfile.open(sdist) as archive:
            for number, member in enumerate(archive):
                if number > MAX_FILES:
                    raise ValueError(f"the sdist has more than {MAX_FILES} files")
                if hasattr(tarfile, "data_filter"):
                    archive.extract(member, root, filter="data")
                elif member.isfile() or member.isdir() or member.issym() or member.islnk():
                    target = os.path.join(os.path.dirname(member.name), member.linkname) if member.issym() else member.linkname
                    if not inside(member.name) or (member.linkname and not inside(target)):
                        raise ValueError(f"{member.name[:200]!r} leads out of the sdist")
                    archive.extract(member, root)
                else:
                    raise ValueError(f"{member.name[:200]!r} is neither file nor folder")
    found = os.listdir(root)
    if len(found) != 1 or not os.path.isdir(os.path.join(root, found[0])):
        raise ValueError("the sdist does not hold exactly one folder")
    source = os.path.join(root, found[0])
    system = {}
    try:
        with open(os.path.join(source, "pyproject.toml"), "rb") as file:
            try:
                import tomllib
            except ImportError:
                import tomli as tomllib
            system = tomllib.load(file).get("build-system", {})
    except FileNotFoundError:
        pass
    # PEP 517 and PEP 518: without a table it is setuptools.
    return {
        "source": source,
        "requires": system.get("requires", ["setuptools"]),
        "backend": system.get("build-backend", "setuptools.build_meta:__legacy__"),
        "backend_path": system.get("backend-path"),
    }


def requires(source, python, system):
    import pyproject_hooks

    system = json.loads(system)
    caller = pyproject_hooks.BuildBackendHookCaller(source, system["backend"], system["backend_path"], python_executable=python)
    return {"requires": [str(r) for r in caller.get_requires_for_build_wheel()]}


def check(folder, name, version):
    from packaging.tags import sys_tags
    from packaging.utils import canonicalize_name, parse_wheel_filename
    from packaging.version import Version

    wheels = sorted(glob.glob(os.path.join(glob.escape(folder), "*.whl")))
    if len(wheels) != 1:
        made = "no wheel" if not wheels else f"{len(wheels)} wheels ({', '.join(map(os.path.basename, wheels[:4]))})"
        return {"problem": f"the build made {made}, not one"}
    filename = os.path.basename(wheels[0])
    found, v, _, tags = parse_wheel_filename(filename)
    if found != canonicalize_name(name) or v != Version(version):
        return {"problem": f"the build made {filename}, which is not {name} {version}"}
    with zipfile.ZipFile(wheels[0]) as wheel:
        metadata = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1]
        if len(metadata) != 1:
            return {"problem": f"{filename} holds {len(metadata)} METADATA files, not one"}
        if wheel.getinfo(metadata[0]).file_size > 8 << 20:
            return {"problem": f"the METADATA of {filename} is over 8 MiB"}
        fields = email.parser.BytesParser().parsebytes(wheel.read(metadata[0]), headersonly=True)
    said = f"{fields['Name']} {fields['Version']}"
    if canonicalize_name(fields["Name"] or "") != found or not fields["Version"] or Version(fields["Version"]) != v:
        return {"problem": f"{filename} disagrees with its metadata, which says {said[:200]}"}
    if tags.isdisjoint(sys_tags()):
        return {"problem": f"{filename} does not fit this Python: its tags are {', '.join(sorted(map(str, tags))[:8])}"}
    return {"filename": filename}


def main():
    command, result, *args = sys.argv[1:]
    try:
        made = {"unpack": unpack, "requires": requires, "check": check}[command](*args)
    except Exception as error:  # whatever a package's code raises is an answer
        trace = getattr(error, "traceback", "")  # of the backend's own process
        print(trace or "", file=sys.stderr)
        made = {"problem": f"{type(error).__name__}: {error}"[:500]}
    scratch = result + ".new"
    with open(scratch, "x") as file:
        json.dump(made, file)
    os.rename(scratch, result)


if __name__ == "__main__":
    main()
