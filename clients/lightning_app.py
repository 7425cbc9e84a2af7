"""Training by Lightning as its users start it: on one process, or by DDP on several.

python lightning_app.py CONFIG.yaml PROCESSES FOLDER
"""

import sys

import lightning as L
import torch
import yaml
from network import data, plain
from torch.utils.data import DataLoader, TensorDataset

from constrained import constrain, save


class Regression(L.LightningModule):
    def __init__(self, constraints):
        super().__init__()
        self.save_hyperparameters()
        self.body = constrain(plain(), constraints)

    def training_step(self, batch, _):
        x, y = batch
        return (self.body(x) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def main(config, processes, folder):
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    with open(config) as file:
        model = Regression(yaml.safe_load(file))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=4,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # One step takes all of the data, of which each process has its share.
    dataset = TensorDataset(*data())
    batches = DataLoader(dataset, batch_size=len(dataset) // processes)
    trainer.fit(model, batches)
    trainer.save_checkpoint(f"{folder}/last.ckpt")
    if trainer.is_global_zero:
        save(model.body, folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
