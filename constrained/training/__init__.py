"""What happens around an optimizer step, and linear layers that are trained by factors.

- ``post_step``: the hooks that torch calls before and after each step, and for which tensors.
- ``canonicalize``: what is done to one tensor: its gradient before the step, its originals after.
- ``lbfgs_history``: when that may be done to the parameters of L-BFGS, which compares its steps.
- ``linear_fast_path``: linear layers that never form their weight, or its gradient.
"""
