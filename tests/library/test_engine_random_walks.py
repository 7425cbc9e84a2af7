"""Random sequences of operations: this engine and torch's agree at every read.

Two equal models, one on each engine, go through the same random operations. Torch's engine, which
evaluates at every read, is the reference for values and gradients.
"""

import copy
import random

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrize as torchs
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

import constrained.parametrize as ours
from tests.promises.counting import (
    Averaging,
    Dropped,
    Foreign,
    Outer,
    Positive,
    Sphere,
    Symmetric,
)


class Gained(Positive):
    """A constraint with a buffer, and a value that depends on the training flag."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gain", torch.ones((), dtype=torch.double))

    def forward(self, x):
        return super().forward(x) * self.gain * (1.0 if self.training else 2.0)

    def right_inverse(self, value):
        return super().right_inverse(value / self.gain / (1.0 if self.training else 2.0))


class Pair:
    """Two copies of a model, the state of a walk, and the steps it can take."""

    def __init__(self, constraint, chain, seed):
        self.random = random.Random(seed)
        self.models = []
        for P in (ours, torchs):
            torch.manual_seed(seed)
            m = nn.Linear(3, 3).double()
            first = constraint()
            with torch.no_grad():
                m.weight.abs_().add_(0.1)
                if hasattr(first, "project"):
                    m.weight.copy_(first.project(m.weight))
                m.bias.copy_(nn.functional.normalize(m.bias, dim=0))
            P.register_parametrization(m, "weight", first)
            if chain:
                P.register_parametrization(m, "weight", chain())
            P.register_parametrization(m, "bias", Sphere() if seed % 2 else nn.Tanh())
            self.models.append((P, m))
        self.optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for _, m in self.models]
        self.saved = [copy.deepcopy(m.state_dict()) for _, m in self.models]
        self.losses = [[], []]

    def both(self, f):
        """Do the same to both, with the same random numbers, and compare the results."""
        seed = self.random.random()
        results = []
        for i, (P, m) in enumerate(self.models):
            torch.manual_seed(int(seed * 1e6))
            results.append(f(i, P, m))
        if results[0] is not None:
            assert_close(*results)

    def x(self, m):
        return torch.randn(2, 3).to(m.parametrizations.bias.original)

    def check(self):
        for name in ("weight", "bias"):
            self.both(lambda i, P, m, name=name: getattr(m, name).detach())
        ours_, torchs_ = (m for _, m in self.models)
        for p, q in zip(
            sorted(ours_.named_parameters()), sorted(torchs_.named_parameters()), strict=True
        ):
            assert p[0] == q[0]
            assert_close(p[1], q[1])
            assert (p[1].grad is None) == (q[1].grad is None)
            if p[1].grad is not None:
                assert_close(p[1].grad, q[1].grad)

    def drop_losses(self):
        # What lies between a forward and its backward pass must be visible to autograd: what it
        # gives otherwise is no reference.
        self.losses = [[], []]

    # Steps. Each is named after what a user does.

    def read(self):
        self.both(lambda i, P, m: m.weight.detach().clone())

    def evaluate(self):
        mode = self.random.choice([torch.no_grad, torch.inference_mode])

        def f(i, P, m):
            with mode():
                return m(m(self.x(m))).clone()

        self.both(f)

    def forward_backward(self):
        def f(i, P, m):
            out = m(torch.tanh(m(self.x(m)))).tanh().pow(2).sum()
            if out.requires_grad:
                out.backward()
            return out.detach()

        self.both(f)

    def forward_now(self):
        self.both(lambda i, P, m: self.losses[i].append(m(self.x(m)).sin().sum()))

    def backward_later(self):
        outcomes = []
        for losses in self.losses:
            kept = None
            while losses:
                loss = losses.pop(0)
                try:
                    if loss.requires_grad:
                        loss.backward()
                except RuntimeError as error:
                    kept = str(error)[:60]
            outcomes.append(kept)
        assert outcomes[0] == outcomes[1]
        if outcomes[0] is not None:
            self.zero_grad()

    def penalty(self):
        def f(i, P, m):
            originals = [p for p in m.parameters() if p.requires_grad]
            if not originals:
                return
            x = self.x(m)
            loss = (torch.tanh(x @ m.weight.mT) + m.bias).sin().sum()
            first = torch.autograd.grad(loss, originals, create_graph=True, allow_unused=True)
            total = sum(g.pow(2).sum() for g in first if g is not None)
            if total.requires_grad:
                total.backward()
            return

        self.both(f)

    def checkpointed(self):
        reentrant = self.random.random() < 0.5

        def f(i, P, m):
            x = self.x(m).requires_grad_()
            out = checkpoint(lambda x: m(m(x)).sin(), x, use_reentrant=reentrant)
            out.sum().backward()
            return x.grad

        self.both(f)

    def transform(self):
        def f(i, P, m):
            x = self.x(m)
            params = {k: p.detach() * 0.9 for k, p in m.named_parameters()}
            found = grad(lambda p: functional_call(m, p, (x,)).sin().sum())(params)
            return dict(sorted(found.items()))

        self.both(f)

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self):
        for _, m in self.models:
            m.zero_grad()

    def hand_written_step(self):
        self.drop_losses()

        def f(i, P, m):
            for p in m.parameters():
                if p.grad is not None:
                    p.data -= 0.05 * p.grad

        self.both(f)

    def write(self):
        how = self.random.choice(["no_grad", "data", "replace", "numpy"])
        factor = 0.8 + 0.4 * self.random.random()
        if how != "no_grad":
            self.drop_losses()

        def f(i, P, m):
            for _, p in sorted(m.named_parameters()):
                if how == "no_grad":
                    with torch.no_grad():
                        p.mul_(factor)
                elif how == "data":
                    p.data.mul_(factor)
                elif how == "replace":
                    p.data = p.data * factor
                else:
                    p.detach().numpy()[...] *= factor

        self.both(f)

    def write_buffers(self):
        through_data = self.random.random() < 0.5
        if through_data:
            self.drop_losses()

        def f(i, P, m):
            for b in m.buffers():
                (b.data if through_data else b).mul_(1.1)

        self.both(f)

    def save(self):
        self.saved = [copy.deepcopy(m.state_dict()) for _, m in self.models]

    def load(self):
        assign = self.random.random() < 0.3

        def f(i, P, m):
            state = copy.deepcopy(self.saved[i])
            if assign:
                flags = {k: p.requires_grad for k, p in m.named_parameters()}
                dtype = m.parametrizations.bias.original.dtype
                state = {k: v.to(dtype) for k, v in state.items()}
                m.load_state_dict(state, assign=True)
                for k, p in m.named_parameters():
                    p.requires_grad_(flags[k])
                self.optimizers[i] = torch.optim.SGD(m.parameters(), lr=0.05)
            else:
                m.load_state_dict(state)

        self.both(f)

    def assign(self):
        def f(i, P, m):
            m.weight = m.weight.detach().clone()

        self.both(f)

    def convert(self):
        self.drop_losses()

        def f(i, P, m):
            m.float().double()

        self.both(f)

    def train_or_eval(self):
        mode = self.random.random() < 0.5
        self.both(lambda i, P, m: m.train(mode) and None)

    def freeze_or_not(self):
        which = self.random.random() < 0.5
        flag = self.random.random() < 0.5

        def f(i, P, m):
            (m.parametrizations.weight if which else m).requires_grad_(flag)
            m.zero_grad()

        self.both(f)

    def copy_and_go_on_with_the_copy(self):
        self.drop_losses()
        self.models = [(P, copy.deepcopy(m)) for P, m in self.models]
        self.optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for _, m in self.models]

    def register_and_remove_another(self):
        def f(i, P, m):
            m.extra = nn.Parameter(torch.ones(2))
            P.register_parametrization(m, "extra", Positive())
            value = m.extra.detach().clone()
            P.remove_parametrizations(m, "extra")
            del m.extra
            return value

        self.both(f)

    def in_cached(self):
        def f(i, P, m):
            x = self.x(m)
            with P.cached():
                return (m(x) + m(2 * x)).detach()

        self.both(f)

    STEPS = (
        *(read, evaluate, forward_backward, forward_now, backward_later, penalty, checkpointed),
        *(transform, step, step, step, zero_grad, hand_written_step, write, write, save, load),
        write_buffers,
        *(assign, convert, train_or_eval, freeze_or_not, copy_and_go_on_with_the_copy),
        *(register_and_remove_another, in_cached),
    )


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("constraint", "chain"),
    [
        (Positive, None),
        (Sphere, None),
        (Symmetric, None),
        (Outer, None),
        (Gained, None),
        (Foreign, None),
        (Dropped, None),
        (Averaging, None),
        (Gained, Averaging),
        (Sphere, Positive),
        (Sphere, nn.Tanh),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_random_walks(constraint, chain, seed):
    pair = Pair(constraint, chain, seed)
    # If there is no right inverse, or it does not lead back to the value.
    one_way = chain in (nn.Tanh, Averaging) or constraint in (Foreign, Dropped, Averaging)
    steps = [s for s in Pair.STEPS if not (one_way and s is Pair.assign)]
    if Averaging in (constraint, chain):
        steps.remove(Pair.transform)  # torch.func forbids to write state
    log = []
    try:
        for _ in range(40):
            step = pair.random.choice(steps)
            log.append(step.__name__)
            step(pair)
            if pair.random.random() < 0.5:
                pair.check()
        pair.check()
    except BaseException as error:
        error.add_note("after " + ", ".join(log))
        raise
