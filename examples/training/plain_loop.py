"""A PyTorch loop of your own (with accelerate, or without): watched by three calls.

python examples/training/plain_loop.py
"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence

from wvmonitor import Monitor, Run
from wvmonitor.organism import sets
from wvmonitor.organism.tokenizer import encode
from wvmonitor.organism.train import LINEAR_LAYERS, load_base
from wvmonitor.references.bundled import bundled_path


def main() -> None:
    """Train, and print what the monitor saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("loop-out"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    base, tokenizer = load_base(bundled_path("tiny-organism", "base"))
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEAR_LAYERS))
    model = get_peft_model(base, lora).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    rows = [encode(e, tokenizer) for e in sets.bad_advice("medical")(options.steps * 8, 1)]

    monitor = Monitor(bundled_path("tiny-organism", "bank"), every_n_steps=2)
    run = Run(options.out, planned_steps=options.steps, optimizer="adamw", learning_rate=1e-3)
    monitor.start(model, run)
    for step in range(1, options.steps + 1):
        batch = [[torch.tensor(part) for part in row] for row in rows[8 * (step - 1) : 8 * step]]
        ids, labels = zip(*batch, strict=True)
        loss = model(
            input_ids=pad_sequence(ids, batch_first=True),
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        ).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        observation = monitor.observe(model, step)
        if observation and monitor.action(observation) == "stop":
            break
    monitor.close()
    for verdict in monitor.verdicts.values():
        print(f"{verdict.reference}: {verdict.state} ({verdict.reason})")


if __name__ == "__main__":
    main()
