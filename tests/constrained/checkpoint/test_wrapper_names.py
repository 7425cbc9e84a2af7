import pytest

from constrained.checkpoint.wrapper_names import Unwrapped


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["weight", "0.bias"], ["weight", "0.bias"]),
        (["module.weight", "module.0.bias"], ["weight", "0.bias"]),
        (["module.module.weight"], ["weight"]),
        (["_orig_mod.module.weight", "_orig_mod.module._orig_mod.0.b"], ["weight", "0.b"]),
        (["_forward_module.weight"], ["weight"]),
        (["0._orig_mod.weight", "1.weight"], ["0.weight", "1.weight"]),
        # A child of that name, as of an average of weights.
        (["module.weight", "n_averaged"], ["module.weight", "n_averaged"]),
        (["modules.weight"], ["modules.weight"]),
        ([], []),
    ],
)
def test_names_are_those_without_wrappers(keys, names):
    found = Unwrapped(keys)
    assert [found.name(key) for key in keys] == names


def test_names_of_modules():
    names = Unwrapped(["module._orig_mod.0.weight"])
    assert names.name("module") == "" and names.name("module._orig_mod") == ""
    assert names.name("module._orig_mod.0") == "0" and names.name("") == ""
    assert Unwrapped(["weight"]).name("") == ""
