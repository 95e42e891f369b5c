"""A build backend that needs nothing: it puts one module into a wheel."""

import base64
import hashlib
import os
import zipfile

STEM = "refinery_smoke-1.0"
METADATA = "Metadata-Version: 2.1\nName: refinery-smoke\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: refinery\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def get_requires_for_build_wheel(config_settings=None):
    return []


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = STEM + ".dist-info"
    os.mkdir(os.path.join(folder, info))
    with open(os.path.join(folder, info, "METADATA"), "w") as file:
        file.write(METADATA)
    return info


def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = STEM + "-py3-none-any.whl"
    with open("refinery_smoke.py") as file:
        files = {"refinery_smoke.py": file.read(), STEM + ".dist-info/METADATA": METADATA, STEM + ".dist-info/WHEEL": WHEEL}
    record = ""
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(text.encode())}\n"
        wheel.writestr(STEM + ".dist-info/RECORD", record + STEM + ".dist-info/RECORD,,\n")
    return name
