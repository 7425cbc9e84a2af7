"""Every private part of torch that is used here, and what replaces it where torch lacks it.

The public interface of torch does not tell whether a transform is running, whether a tensor was
written, or what a tracer has recorded. The private names that do are used in this package only, and
a test makes sure of that.

A private part is used if it exists and works: `constrained.torch_internals.look_up` tries it when
the file is imported. Version numbers are never compared, so that this works for versions that
nobody has tried. Each file says why it needs a part, and what replaces it: something public that is
right, but slower. `missing` lists the parts that were replaced. ``docs/compatibility.md`` lists
the versions of torch that all of this was tried on, and the parts that each of them lacks.

* `modes`: transforms, tracers, dispatch modes and saved-tensor hooks that are at work;
* `tensors`: what a tensor is, and whether it was written;
* `functions`: how an ``autograd.Function`` is applied and differentiated;
* `hooks`: the hooks that are registered on a tensor;
* `calls`: how ``torch.func.functional_call`` replaces the tensors of a module;
* `classes`: what ``torch.nn.utils.parametrize`` writes into the class of a module;
* `rewriters`: other functions of torch that replace a tensor of a module;
* `compiled_graphs`: one evaluation in each graph that ``torch.compile`` traces;
* `modules`: what torch writes into modules, optimizers and checkpoints;
* `shards`: what FSDP writes on the modules and parameters that it manages.

Imports go downwards: from here, to torch alone.
"""

from constrained.torch_internals.look_up import missing

__all__ = ["missing"]
