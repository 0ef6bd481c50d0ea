"""Whether the hooks that docs/how-to/integrations.md gives are still where it says: read, not run.

python -m benchmarks.interfaces [WHEELS]

Frameworks that need a GPU, or too large an environment of their own, are read instead: their newest
wheel is fetched without its dependencies (or found in the folder WHEELS), and nothing of it is
imported. Each claim is a function of its source and what that function must hold; one that fails is
printed and the exit code is 1. What was read goes to benchmarks/results/interfaces.json, of which
`python docs/generate.py` makes a table.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "interfaces.json"


@dataclass(frozen=True)
class Claim:
    """A function, by its file and dotted name, and code in it, as `ast.unparse` has it."""

    file: str
    function: str
    holds: str


@dataclass(frozen=True)
class Framework:
    """A framework's package, its name for people, the hook, and what the hook rests on."""

    package: str
    title: str
    hook: str
    claims: tuple[Claim, ...]


FRAMEWORKS = (
    Framework(
        "llamafactory",
        "LLaMA-Factory",
        "`run_exp(args, callbacks=[…])`",
        (
            Claim("llamafactory/train/tuner.py", "run_exp", "'callbacks': callbacks"),
            Claim("llamafactory/train/tuner.py", "_training_function", "run_sft(model_args, "
                  "data_args, training_args, finetuning_args, generating_args, callbacks)"),
            Claim("llamafactory/train/sft/workflow.py", "run_sft", "callbacks=callbacks"),
            Claim("llamafactory/train/dpo/workflow.py", "run_dpo", "callbacks=callbacks"),
        ),
    ),
    Framework(
        "ms-swift",
        "ms-swift",
        "`--external_plugins FILE --callbacks wvmonitor`",
        (
            Claim("swift/arguments/base_args/base_args.py",
                  "BaseArguments._import_external_plugins",
                  "import_external_file(external_plugin)"),
            Claim("swift/trainers/mixin.py", "SwiftMixin._get_callbacks",
                  "callbacks_map[callback](args, self)"),
        ),
    ),
    Framework(
        "verl",
        "verl",
        "`actor_rollout_ref.model.external_lib`, `FSDPEngineWithLMHead.optimizer_step`",
        (
            Claim("verl/workers/config/model.py", "HFModelConfig.__post_init__",
                  "import_external_libs(self.external_lib)"),
            Claim("verl/workers/engine_workers.py", "ActorRolloutRefWorker.update_actor",
                  "self.actor.train_mini_batch(data=data)"),
            Claim("verl/workers/engine/base.py", "BaseEngine.train_batch", "self.optimizer_step()"),
            Claim("verl/workers/engine/fsdp/transformer_impl.py", "FSDPEngine.optimizer_step",
                  "self.module.parameters()"),
        ),
    ),
    Framework(
        "openrlhf",
        "OpenRLHF",
        "`wvmonitor watch` on the checkpoints that `--ckpt.save_hf` keeps",
        (
            Claim("openrlhf/trainer/ray/ppo_actor.py", "PolicyModelActor.save_checkpoint",
                  "self.strategy.save_model("),
            Claim("openrlhf/trainer/ray/ppo_actor.py", "PolicyModelActor.save_checkpoint",
                  "f'{tag}_hf'"),
        ),
    ),
)  # fmt: skip


def body(source: str, function: str) -> str:
    """The function's code, however it was formatted; "" where there is none of that name."""
    node: ast.AST = ast.parse(source)
    for name in function.split("."):
        found = next(
            (n for n in ast.iter_child_nodes(node) if getattr(n, "name", None) == name), None
        )
        if found is None:
            return ""
        node = found
    return ast.unparse(node)


def wheel(package: str, wheels: Path, folder: Path) -> Path:
    """The package's wheel: one that lies in `wheels`, else the newest."""
    pattern = f"{package.replace('-', '_')}-*.whl"
    found = sorted(wheels.glob(pattern))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
        subprocess.run([*command, "--dest", str(folder)], check=True)
        found = sorted(folder.glob(pattern))
    return found[-1]


def read(framework: Framework, archive: Path) -> list[Claim]:
    """The claims that the wheel does not bear out."""
    with zipfile.ZipFile(archive) as opened:
        files = {name.rpartition("/purelib/")[2]: name for name in opened.namelist()}
        return [
            claim
            for claim in framework.claims
            if claim.file not in files
            or claim.holds not in body(opened.read(files[claim.file]).decode(), claim.function)
        ]


def main(wheels: str = "") -> int:
    """Read every framework, and keep which versions were read."""
    known, failed = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for framework in FRAMEWORKS:
            archive = wheel(framework.package, Path(wheels or folder), Path(folder))
            version = archive.name.split("-")[1]
            wrong = read(framework, archive)
            for claim in wrong:
                print(f"{framework.title} {version}: {claim.function} in {claim.file} "
                      f"does not hold {claim.holds!r}")  # fmt: skip
            if wrong:
                failed = 1
                continue
            print(f"{framework.title} {version}: {framework.hook}")
            known[framework.package] = {
                "stack": framework.title, "version": version, "hook": framework.hook,
            }  # fmt: skip
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
