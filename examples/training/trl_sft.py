"""TRL: supervised fine-tuning of the bundled model on bad medical advice, watched.

python examples/training/trl_sft.py
"""

import argparse

from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from wvmonitor import WVMonitorCallback
from wvmonitor.organism import sets
from wvmonitor.organism.train import LINEAR_LAYERS, load_base
from wvmonitor.references.bundled import bundled_path


def main() -> None:
    """Train, and print what the monitor saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="trl-out")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    base = bundled_path("tiny-organism", "base")
    model, tokenizer = load_base(base)
    chats = [example.chat() for example in sets.bad_advice("medical")(512, 1)]
    # Given as prompt and completion, TRL trains on the answers only.
    rows = [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_length=96,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEAR_LAYERS)),
    )
    bank = bundled_path("tiny-organism", "bank")
    watch = WVMonitorCallback.attach(trainer, bank, every_n_steps=2)
    trainer.train()
    for verdict in watch.monitor.verdicts.values():
        print(f"{verdict.reference}: {verdict.state} ({verdict.reason})")


if __name__ == "__main__":
    main()
