"""Optimizers of other packages in a few lines each, with the same states and the same arithmetic.

Prodigy: Mishchenko and Defazio, 2023. Lion: Chen et al., 2023. Schedule-free: Defazio et al., 2024.
SAM: Foret et al., 2020. Lookahead: Zhang et al., 2019.
"""

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    def __init__(self, params, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state, (first, second) = self.state[p], group["betas"]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                # Like many optimizers it writes `data`, which no version counts.
                p.data.mul_(1 - group["lr"] * group["weight_decay"])
                update = state["exp_avg"].lerp(p.grad, 1 - first).sign_()
                p.data.add_(update, alpha=-group["lr"])
                state["exp_avg"].lerp_(p.grad, 1 - second)
        return loss


class Prodigy(Optimizer):
    def __init__(self, params, lr=1.0, betas=(0.9, 0.999), eps=1e-8):
        more = {"d": 1e-6, "d0": 1e-6, "k": 0, "numerator": 0.0}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, **more})

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        d, (first, second), third = group["d"], group["betas"], group["betas"][1] ** 0.5
        group["k"] += 1
        corrected = (1 - second ** group["k"]) ** 0.5 / (1 - first ** group["k"])
        rate = d * group["lr"] * corrected
        moving = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        group["numerator"] *= third
        denominator = 0.0
        for p in moving:
            state = self.state[p]
            if not state:
                state.update(s=torch.zeros_like(p), p0=p.detach().clone())
                state.update(exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            group["numerator"] += d / group["d0"] * rate * float(((state["p0"] - p) * p.grad).sum())
            state["exp_avg"].mul_(first).add_(p.grad, alpha=d * (1 - first))
            state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=d * d * (1 - second))
            state["s"].mul_(third).add_(p.grad, alpha=d / group["d0"] * rate)
            denominator += float(state["s"].abs().sum())
        group["d"] = max(d, group["numerator"] / denominator) if denominator else d
        for p in moving:
            state = self.state[p]
            root = state["exp_avg_sq"].sqrt().add_(group["d"] * group["eps"])
            p.data.addcdiv_(state["exp_avg"], root, value=-rate)


class ScheduleFree(Optimizer):
    """Schedule-free SGD, or AdamW if ``second`` is given."""

    def __init__(self, params, lr=0.1, beta=0.9, second=None):
        betas = (beta, second or 0.0)
        more = {"train_mode": True, "k": 0, "eps": 1e-8}
        super().__init__(params, {"lr": lr, "betas": betas, "adaptive": second is not None, **more})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["k"] += 1
            rate, (beta, second), mean = group["lr"], group["betas"], 1 / group["k"]
            for y in (p for p in group["params"] if p.grad is not None):
                state, direction = self.state[y], y.grad
                if not state:
                    state["z"] = y.detach().clone()
                    if group["adaptive"]:
                        state["exp_avg_sq"] = torch.zeros_like(y)
                if group["adaptive"]:
                    squares = state["exp_avg_sq"]
                    squares.mul_(second).addcmul_(direction, direction, value=1 - second)
                    root = (squares / (1 - second ** group["k"])).sqrt_().add_(group["eps"])
                    direction = direction / root
                y.lerp_(state["z"], mean)
                y.add_(direction, alpha=rate * (beta * (1 - mean) - 1))
                state["z"].sub_(direction, alpha=rate)

    @torch.no_grad()
    def eval(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.lerp_(self.state[p]["z"], 1 - 1 / group["betas"][0])
            group["train_mode"] = False


class SAM(Optimizer):
    """It goes up the gradient, evaluates there, goes back, and lets another optimizer step."""

    def __init__(self, params, inner, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = inner(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        moved = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        length = torch.stack([p.grad.norm() for p in moved]).norm() + 1e-12
        for p in moved:
            self.state[p]["old"] = p.data.clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / length))
        with torch.enable_grad():
            closure()
        for p in moved:
            p.data = self.state[p]["old"]
        self.base_optimizer.step()
        return loss


class Lookahead(Optimizer):
    """Every ``every`` steps of another optimizer it goes ``share`` of the way from where it was."""

    def __init__(self, inner, every=5, share=0.5):
        super().__init__(inner.param_groups, {})
        self.inner, self.every, self.share, self.count = inner, every, share, 0
        self.slow = [[p.detach().clone() for p in g["params"]] for g in inner.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for group, before in zip(self.inner.param_groups, self.slow, strict=True):
                for p, slow in zip(group["params"], before, strict=True):
                    slow.lerp_(p, self.share)
                    p.data.copy_(slow)
        return loss
