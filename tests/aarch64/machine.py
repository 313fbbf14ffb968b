"""An aarch64 machine without one: Debian's arm64 Python and PyPI's wheels in a folder, run by qemu-user.

`python machine.py FOLDER` makes it; nothing of this machine's packages changes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "3.11"
EMULATOR = "qemu-aarch64-static"
DEBIAN = [
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libpython3.11-dev"),
    *("libc6", "libgcc-s1", "libstdc++6", "libcrypt1", "libuuid1"),
    *("libbz2-1.0", "libexpat1", "libffi8", "liblzma5", "libsqlite3-0", "libssl3", "zlib1g"),
]
# ONNX Runtime from 1.28 on crashes under qemu 7.2.
WHEELS = [
    "numpy",
    "onnxruntime==1.26.0",
    "pillow",
    "tokenizers",
    "typer",
    "rich",
    "platformdirs",
    "pytest",
    "hypothesis",
    "scipy",
]
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "any")


def make(folder: Path) -> None:
    """Fills `folder` with root/ and site/, unless they are there."""
    needed = (EMULATOR, "aarch64-linux-gnu-g++", "apt-get", "dpkg")
    missing = [command for command in needed if shutil.which(command) is None]
    if missing:
        sys.exit(f"not here: {', '.join(missing)}; on Debian 12: apt install qemu-user-static g++-aarch64-linux-gnu")
    for name, fill in (("root", _fill_root), ("site", _fill_site)):
        if not (folder / name).is_dir():
            part = folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            fill(part)
            part.rename(folder / name)


def _fill_root(root: Path) -> None:
    """Packages of the release that apt already knows, by lists of their own."""
    state = root.parent / "apt"
    for name in ("state/lists/partial", "cache/archives/partial", "packages"):
        (state / name).mkdir(parents=True, exist_ok=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": state / "state",
        "Dir::Cache": state / "cache",
        "Dir::State::status": "/dev/null",
    }
    apt = ["apt-get", "-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *DEBIAN], check=True, cwd=state / "packages")
    for package in (state / "packages").glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, root], check=True)


def _fill_site(site: Path) -> None:
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    target = ["--target", site, "--python-version", VERSION, "--only-binary", ":all:", *platforms]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *target, *WHEELS], check=True)


def python(folder: Path, cpu: str = "max") -> list[str]:
    """What runs Python there, on a CPU as qemu calls it; modules are found in site/."""
    path = f"PYTHONPATH={folder / 'site'}"
    root = folder / "root"
    return [EMULATOR, "-cpu", cpu, "-L", str(root), "-E", path, str(root / f"usr/bin/python{VERSION}")]


if __name__ == "__main__":
    make(Path(sys.argv[1]))
