"""Fetches llama.cpp's stock chat templates from the Python package llama-cpp-python.

usage: fetch_templates.py DIRECTORY

Does nothing if DIRECTORY exists. Writes DIRECTORY atomically. The templates are not part of the project.
"""

import hashlib
import pathlib
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "llama-cpp-python==0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = "/vendor/llama.cpp/models/templates/"


def main(directory):
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    print(f"make: fetching stock chat templates into {directory}", flush=True)
    # In the same directory, so that a rename publishes the templates.
    with tempfile.TemporaryDirectory(dir=directory.parent) as work:
        work = pathlib.Path(work)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--no-binary", ":all:", "--dest", str(work), PACKAGE], check=True)
        source = next(work.glob("llama_cpp_python-*.tar.gz"))
        found = hashlib.sha256(source.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"make: {source.name} has the SHA-256 {found}, expected {SHA256}")
        into = work / "templates"
        into.mkdir()
        with tarfile.open(source) as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name).name
                if member.isfile() and INSIDE in member.name and name.endswith(".jinja"):
                    (into / name).write_bytes(archive.extractfile(member).read())
        into.rename(directory)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
