"""Every private part of torch that is used here, and what is done where torch has none of it.

The engine asks torch for things that it does not tell in public: whether a transform is running,
whether a tensor was written, what a tracer has recorded. All of that stands in this package, and a
test holds that no other file reaches for a name of torch that begins with an underscore.

Each part is taken by looking whether it is there, and whether it answers as it should: see
`constrained.torch_internals.look_up`. Version numbers are never compared, so that a version which
nobody has seen yet is met in the same way. Where a part is missing, something public takes its
place, which is slower and right; `missing` lists these places. ``docs/compatibility.md`` says on
which versions all of it was tried, and what each of them lacks.

* `moments`: what surrounds a computation: transforms, tracers, modes, saved-tensor hooks;
* `tensors`: what a tensor is, and whether it was written;
* `functions`: how an ``autograd.Function`` is applied and differentiated;
* `calls`: what ``torch.func.functional_call`` puts in the place of a tensor;
* `graphs`: what ``torch.compile`` remembers while it traces a graph;
* `modules`: what torch writes into modules, optimizers and checkpoints;
* `shards`: what FSDP writes on the parameters that it has cut.

Imports go downwards: from here, to torch alone.
"""

from constrained.torch_internals.look_up import missing

__all__ = ["missing"]
