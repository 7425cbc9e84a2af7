"""An experiment as the users of Hydra write it: its constraints stand in its config.

python hydra_app.py -m constraints.fc.weight=sphere,ball,orthogonal
"""

from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from torch import nn

from constrained import constrain, save, violations


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 6, batch_first=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.rnn(x)[0][:, -1])


@hydra.main(version_base=None, config_path="hydra_config", config_name="config")
def main(config):
    torch.manual_seed(0)
    x, y = torch.randn(16, 5, 3), torch.randn(16, 4)
    model = constrain(Network(), config.constraints)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(config.steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    folder = Path(HydraConfig.get().runtime.output_dir)
    save(model, folder)
    print(f"loss {loss:.4f}, violation {max(violations(model).values(), default=0):.1e}")


if __name__ == "__main__":
    main()
