"""What the tests of the optimiser train: drawn parameters, and a network with every role."""

import torch
from torch import nn

PLAIN = {"momentum": 0.0, "orthogonalise": "exact"}


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameter(*shape, seed=0, dtype=torch.float64):
    p = nn.Parameter(gaussian(*shape, seed=seed, dtype=dtype))
    p.grad = gaussian(*shape, seed=seed + 100, dtype=dtype)
    return p


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(11, 6)
            self.conv = nn.Conv2d(1, 3, 2)
            self.hidden = nn.Linear(15, 6)
            self.again = nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 11, bias=False)

    def forward(self, ids):
        x = self.conv(self.embed(ids)[:, None]).flatten(1)
        return self.head(self.norm(torch.relu(self.again(torch.relu(self.hidden(x))))))


def run(model, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        ids = torch.randint(11, (8, 2), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids), ids.sum(1) % 11)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
