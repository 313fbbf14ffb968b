"""The kernels compiled for CUDA 12.6, JetPack 6's, by clang: of that toolkit PyPI has all but nvcc.

clang12.py FOLDER: the folder that pip installed CUDA's runtime, CCCL and nvcc packages into (`make cuda12`). Kernels
and their launches are compiled, nothing is linked; what ptxas says goes to FOLDER/log, for `resources.py`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHITECTURES = (80, 86, 87, 89, 90)
VERSIONS = (21, 20, 19)  # 19 is what was tried


def compiler() -> str:
    """The newest clang++ on the PATH."""
    for version in VERSIONS:
        if found := shutil.which(f"clang++-{version}"):
            return found
    sys.exit(f"clang++-{VERSIONS[-1]} or newer is not on the PATH: apt install clang-19")


def toolkit(folder: Path) -> Path:
    """What pip laid out by package, laid out as clang expects a toolkit."""
    root, packages = folder / "toolkit", folder / "nvidia"
    parts = {"cuda_runtime": ("include",), "cuda_cccl": ("include",), "cuda_nvcc": ("bin", "include", "nvvm")}
    for package, folders in parts.items():
        for part in folders:
            shutil.copytree(packages / package / part, root / part, dirs_exist_ok=True)
    for program in (root / "bin").iterdir():
        program.chmod(0o755)
    # clang includes it before everything, for programs that use cuRAND.
    (root / "include" / "curand_mtgp32_kernel.h").touch()
    (root / "lib64").mkdir(exist_ok=True)
    return root


def compile_kernels(clang: str, root: Path, log: Path) -> int:
    """Compiles each source for the host and for every architecture; what ptxas says goes to `log`."""
    shared = ["-x", "cuda", f"--cuda-path={root}", "-std=c++17", "-O3", "-ffp-contract=off", "-c"]
    shared += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-cuda-version", f"-I{HERE.parent}"]
    device = [(f"--cuda-gpu-arch=sm_{number}", "--cuda-device-only", "-Xcuda-ptxas", "-v") for number in ARCHITECTURES]
    with log.open("w", encoding="utf-8") as file:
        for source in sorted(HERE.glob("*.cu")):
            for options in (("--cuda-host-only",), *device):
                command = [clang, *shared, *options, "-o", str(root / "compiled.o"), str(source)]
                if subprocess.run(command, check=False, stderr=file).returncode:
                    return 1
    return 0


def main() -> int:
    """1 where something does not compile."""
    folder = Path(sys.argv[1])
    log = folder / "log"
    failed = compile_kernels(compiler(), toolkit(folder), log)
    if failed:
        print(log.read_text(encoding="utf-8"), file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())
