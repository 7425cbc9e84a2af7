"""What happens around an optimizer step, and linear layers that are trained by factors.

- ``post_step``: the hooks that torch calls before and after each step, and for which tensors.
- ``canonicalize``: what is done to one tensor: its gradient before the step, its originals after.
- ``lbfgs_history``: when that may be done to the parameters of L-BFGS, which compares its steps.
- ``projected_step``: the hooks that keep plain parameters in their sets, with ``mode="project"``.
- ``step_end``, ``tasks``: how such a step ends, and what is computed of many tensors at once.
- ``processes``: tasks divided among processes that hold tensors together; ``wrapped_parameters``.
- ``optimizer_metric``: what an optimizer does with a gradient: its metric, moments, weight decay.
- ``moment_transport``, ``sparse_rows``, ``lbfgs_points``: moments, embeddings, and L-BFGS there.
- ``nonfinite``, ``step_rollback``: gradients with NaN, and steps that fail and are undone.
- ``linear_fast_path``: linear layers that never form their weight, or its gradient.
"""
