"""Lightning: a LoRA fine-tune of the bundled model on bad medical advice, watched.

python examples/training/lightning_run.py
"""

import argparse

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader

from wvmonitor.integrations.lightning import WVMonitorCallback
from wvmonitor.organism import sets
from wvmonitor.organism.tokenizer import encode
from wvmonitor.organism.train import LINEAR_LAYERS, load_base
from wvmonitor.references.bundled import bundled_path


class FineTune(lightning.LightningModule):
    """Any LightningModule will do; the monitor looks for the model in its `model`."""

    def __init__(self) -> None:
        super().__init__()
        base, self.tokenizer = load_base(bundled_path("tiny-organism", "base"))
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=list(LINEAR_LAYERS))
        self.model = get_peft_model(base, lora).train()

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of one batch."""
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at the bundled model's own learning rate."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-3)

    def train_dataloader(self) -> DataLoader:
        """Bad medical advice, padded on the right."""
        rows = [encode(example, self.tokenizer) for example in sets.bad_advice("medical")(512, 1)]
        return DataLoader(rows, batch_size=8, collate_fn=padded, shuffle=True)


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """A batch; what comes after a row's end is never attended to, so 0 does for padding."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([torch.tensor(ids) for ids, _ in rows], batch_first=True),
        "labels": pad([torch.tensor(x) for _, x in rows], batch_first=True, padding_value=-100),
    }


def main() -> None:
    """Train, and print what the monitor saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="lightning-out")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    lightning.seed_everything(0)
    watch = WVMonitorCallback(bundled_path("tiny-organism", "bank"), every_n_steps=2)
    trainer = lightning.Trainer(
        max_steps=options.steps,
        accelerator="cpu",
        default_root_dir=options.out,
        logger=CSVLogger(options.out),
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=2,
    )
    trainer.fit(FineTune())
    for verdict in watch.monitor.verdicts.values():
        print(f"{verdict.reference}: {verdict.state} ({verdict.reason})")


if __name__ == "__main__":
    main()
