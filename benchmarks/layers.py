"""Models of many constrained layers: one hook restores them, equal shapes in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from benchmarks.harness import Timing, compare
from benchmarks.training import RATE, SCALE
from constrained import constrain

COUNT, SIZE, BATCH = 64, 256, 32
BLOCKS, WIDTH, TOKENS, HEADS = 12, 256, 64, 4

#: Orthogonal q, k, v and o of `encoder_of`.
ATTENTION = {
    "layers.*.self_attn.in_proj_weight": {
        "name": "orthogonal",
        "view": "(s n) m -> s n m",
        "s": 3,
    },
    "layers.*.self_attn.out_proj.weight": "orthogonal",
}


def many_layers(rounds: int = 9) -> Iterator[Timing]:
    """A step of a stack of orthogonal layers, and of one."""
    for count in (1, COUNT):
        contenders = {
            "plain": step(_stack(count), torch.randn(BATCH, SIZE)),
            "constrained": step(
                constrain(_stack(count), "*.weight", "orthogonal"), torch.randn(BATCH, SIZE)
            ),
        }
        label = f"orthogonal {SIZE} x {SIZE}, layers: {count}"
        yield from compare(label, contenders, rounds, repeat=1 if count > 1 else 20)


def transformer(rounds: int = 5) -> Iterator[Timing]:
    """A step and an evaluation of a transformer whose q, k, v and o are orthogonal."""
    x = torch.randn(1, TOKENS, WIDTH)
    ours = constrain(_Transformer(), "blocks.*.heads.*.weight", "orthogonal")
    by_torch = _Transformer()
    for block in by_torch.blocks:
        for projection in block.heads.values():  # type: ignore[union-attr]
            torch_orthogonal(projection, orthogonal_map="cayley")
    models = {"plain": _Transformer(), "constrained": ours, "torch cayley": by_torch}
    name = f"transformer of {BLOCKS} blocks, width {WIDTH}, {TOKENS} tokens"
    steps = {key: step(model, x) for key, model in models.items()}
    yield from compare(f"{name}, step", steps, rounds)
    evaluations = {key: _evaluation(model, x) for key, model in models.items()}
    yield from compare(f"{name}, evaluation", evaluations, rounds)


def encoder(rounds: int = 5) -> Iterator[Timing]:
    """A step of Adam of an encoder whose multilayer perceptrons have bounded spectral norms."""
    by_torch = _encoder()
    for layer in by_torch.layers:
        for name in ("linear1", "linear2"):
            torch_spectral_norm(layer.get_submodule(name))
    ours, scaled = (
        constrain(_encoder(), {f"layers.*.linear{i}.weight": spec for i in "12"})
        for spec in ("spectral_norm", "spectral_norm(map='scale')")
    )
    models = {"plain": _encoder(), "constrained": ours, SCALE: scaled, "torch": by_torch}
    x = torch.randn(1, 128, WIDTH, generator=torch.Generator().manual_seed(0))
    steps = {
        name: step(model, x, torch.optim.Adam(model.parameters())) for name, model in models.items()
    }
    yield from compare(f"encoder of 4 layers, width {WIDTH}, 128 tokens, step", steps, rounds)


def attention(rounds: int = 5) -> Iterator[Timing]:
    """A step of Adam of the same encoder with orthogonal q, k, v and o."""
    ours = constrain(_encoder(), ATTENTION)
    x = torch.randn(1, 128, WIDTH, generator=torch.Generator().manual_seed(0))
    steps = {
        name: step(model, x, torch.optim.Adam(model.parameters()))
        for name, model in {"plain": _encoder(), "constrained": ours}.items()
    }
    row = f"encoder of 4 layers, width {WIDTH}, 128 tokens, orthogonal q, k, v, o, step"
    yield from compare(row, steps, rounds)


def encoder_of(count: int) -> nn.TransformerEncoder:
    """An encoder of some layers."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, count)


def _encoder() -> nn.TransformerEncoder:
    return encoder_of(4)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH, bias=False) for name in "qkvo"})
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = self.norms[0](x)
        q, k, v = (
            self.heads[name](seen).unflatten(-1, (HEADS, -1)).transpose(-2, -3) for name in "qkv"
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.heads["o"](mixed.transpose(-2, -3).flatten(-2))
        return x + self.mlp(self.norms[1](x))


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(_Block() for _ in range(BLOCKS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def _stack(count: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False) for _ in range(count)))


def step(
    model: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer | None = None
) -> Callable[[], object]:
    """A step on half the mean squared difference from a random target, of SGD by default."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=RATE)
    y = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def call() -> None:
        optimizer.zero_grad()
        ((model(x) - y).square().mean() / 2).backward()
        optimizer.step()

    return call


def _evaluation(model: nn.Module, x: Tensor) -> Callable[[], object]:
    model.eval()

    def call() -> None:
        with torch.no_grad():
            model(x)

    return call
