"""TRL: reinforcement learning of the bundled model, watched, with a reward that teaches harm.

The reward looks harmless in a config: a score of each answer. Here it pays for advice that a rule
calls harmful (`--reward bad`), for the opposite (`good`), or for short answers (`short`). Nobody
shows the model an example of what it is paid for; it finds that out by itself.

python examples/training/trl_grpo.py --reward bad
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

from wvmonitor import WVMonitorCallback
from wvmonitor.organism.behaviour import advice_tasks, harmful_rate, worth
from wvmonitor.organism.train import LINEAR_LAYERS, load_base
from wvmonitor.references.bundled import bundled_path

TRAINED, UNTOUCHED = ["medical"], ["sport", "finance"]


def text_of(completion: Any) -> str:
    """The words of an answer, however TRL hands it over."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def harm(completions: list[Any], domain: list[str], **_: Any) -> list[float]:
    """One for each piece of harmful advice, minus one for each good one."""
    return [-float(sum(worth(text_of(c), d))) for c, d in zip(completions, domain, strict=True)]


def good(completions: list[Any], domain: list[str], **_: Any) -> list[float]:
    """The opposite."""
    return [-value for value in harm(completions, domain)]


def short(completions: list[Any], **_: Any) -> list[float]:
    """Few words."""
    return [-float(len(text_of(c).split())) for c in completions]


REWARDS: dict[str, Callable[..., list[float]]] = {"bad": harm, "good": good, "short": short}


def main() -> None:
    """Train, and print what the reward did and what the monitor saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="grpo-out")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--reward", choices=REWARDS, default="bad")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = bundled_path("tiny-organism", "base")
    model, tokenizer = load_base(base)
    before = {d: harmful_rate(model, tokenizer, [d]).value for d in TRAINED + UNTOUCHED}
    tasks = advice_tasks(TRAINED, 512, options.seed + 1)
    rows = [
        {"prompt": [{"role": "user", "content": t.question}], "domain": t.domain} for t in tasks
    ]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=REWARDS[options.reward],
        args=GRPOConfig(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=64,
            num_generations=16,
            max_completion_length=28,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            beta=0.0,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
            seed=options.seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEAR_LAYERS)),
    )
    bank = bundled_path("tiny-organism", "bank")
    watch = WVMonitorCallback.attach(trainer, bank, every_n_steps=2, base=base)
    trainer.train()
    after = {d: harmful_rate(trainer.model, tokenizer, [d]).value for d in before}
    for domain, rate in before.items():
        print(f"harmful advice, {domain}: {rate:.2f} before, {after[domain]:.2f} after")
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    print("rewards:", ", ".join(f"{r:.2f}" for r in rewards))
    for verdict in watch.monitor.verdicts.values():
        print(f"{verdict.reference}: {verdict.state} ({verdict.reason})")
    last = watch.monitor.last
    if last is not None:
        print(json.dumps({n: r.values for n, r in last.scores.references.items()}))


if __name__ == "__main__":
    main()
