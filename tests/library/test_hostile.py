"""Malicious or broken configs: an error of one sentence, quickly, and an unchanged model."""

import inspect
import sys

import pytest
import torch
from torch import nn

import constrained
from constrained import constrain, get, names, release
from constrained.constraint.errors import ConfigErrors, SpecError
from constrained.constraint.plain_data import check_extent, short
from constrained.constraint.spec import parse
from tests.healthy import Sphere

#: Lines of Python that may be executed, about a second of them: seconds depend on the machine.
SOON = 2_000_000


class Steps:
    """A context that counts the executed lines of Python and fails if they are too many."""

    def __enter__(self):
        self.count, self._before = 0, sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _trace(self, frame, event, argument):
        self.count += 1
        if self.count > SOON:
            raise AssertionError("it goes on and on")
        return self._trace


def refused(action, model=None):
    """The error of one sentence that an action raises."""
    before = {} if model is None else {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((ValueError, TypeError)) as caught, Steps():
        action()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700
    if model is not None:
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[key], before[key]) for key in before)
    return message


def aliases(inner, width, depth, wrap):
    """Nested lists as made by YAML's aliases: each level refers several times to the one below."""
    for _ in range(depth):
        inner = wrap([inner] * width)
    return inner


def product(parts):
    return {"name": "product", "parts": parts}


def holding_itself(data, place):
    place.append(data)
    return data


ITSELF: list = []
SPEC_ITSELF = {"name": "sphere"}
SPEC_ITSELF["radius"] = SPEC_ITSELF  # type: ignore[assignment]
PARTS: list = ["sphere"]

HOSTILE = {
    "a name of a megabyte": "a" * 10**6,
    "parentheses of a megabyte": "sphere(" + "(" * 10**6,
    "a chain of a megabyte": "sphere|" * 150_000,
    "a chain of 2000": "ball|" * 1999 + "ball",
    "a chain of 300": "symmetric" + "|spectral_norm" * 300,
    "two aliases, 12 deep": aliases("sphere", 2, 12, product),
    "five aliases, 12 deep": aliases("sphere", 5, 12, product),
    "a mask of ten aliases, 10 deep": {"name": "masked", "mask": aliases(1, 10, 10, list)},
    "a list that holds itself": {"name": "masked", "mask": holding_itself(ITSELF, ITSELF)},
    "a spec that holds itself": holding_itself(product(PARTS), PARTS),
    "an argument that holds its spec": SPEC_ITSELF,
    "deep lists": {"name": "masked", "mask": aliases(1, 1, 500, list)},
    "a large number": {"name": "sphere", "radius": 10**400},
    "more digits than Python writes": {"name": "sphere", "radius": -(10**5000)},
    "a rank of many digits": {"name": "low_rank", "rank": 10**5000},
    "hexadecimal digits": "sphere(radius=0x" + "f" * 9000 + ")",
    "an abstract class": "constrained:Constraint",
    "a class with an object for argument": "constrained.constraint.view:View('a', 'b', (1,))",
    "bytes": b"sphere",
    "bytes among the keys": {"name": "sphere", b"radius": 1.0},
    "a key of a megabyte": {"name": "sphere", "x" * 10**6: 1.0},
    "a null byte": "sph\0ere",
    "a null byte in a literal": "sphere(radius='\0')",
    "half of a pair": "sph\ud800ere",
    "a letter that looks the same": "\u0455phere",
    "an empty string": "",
    "an empty part": "sphere | ",
    "the name of our own argument": {"name": "sphere", "cls": 1, "spec": 2, "self": 3},
    "a view of a megabyte": {"name": "sphere", "view": "a " * 500_000 + "-> a"},
    "a view that is empty": {"name": "sphere", "view": ""},
    "an axis of many digits": {"name": "sphere", "view": "(g a) b -> g a b", "g": 10**5000},
    "an axis of one": {"name": "sphere", "view": "(g a) b -> g a b", "g": True},
    "characters for numbers": {"name": "spectral_norm_conv", "stride": ""},
    **{
        f"init {init!r}": {"name": "sphere", "init": init}
        for init in ([], "", 0, False, {}, b"keep", "keep\0", ["keep"])
    },
}


@pytest.mark.parametrize("spec", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_spec_is_refused_soon_in_one_sentence(spec):
    model = nn.Sequential(nn.Linear(4, 4))
    refused(lambda: constrain(model, "0.weight", spec), model)
    refused(lambda: constrain(model, {"0.weight": spec}), model)


def test_init_none_is_the_default():
    layer = constrain(nn.Linear(4, 4), {"weight": {"name": "sphere", "init": None}})
    constrained.assert_feasible(layer)
    with pytest.raises(ValueError, match=r"init must be 'keep'.*, got \[\]\."):
        constrain(nn.Linear(4, 4), "weight", "sphere", init=[])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target",
    [
        *("*a" * 16, "**a" * 16 + "b", "*" * 10**6, "a" * 10**6, "*a" * 10**6, b"0.weight", 3),
        *(None, "", ".", "0..weight", "0.we\0ight", "0.we\u0456ght", "0.weight\n", "[a]*"),
    ],
    ids=lambda target: repr(target)[:20],
)
def test_a_hostile_target_is_refused_soon_in_one_sentence(target):
    model = nn.Sequential(nn.Linear(4, 4))
    refused(lambda: constrain(model, {target: "sphere"}), model)
    refused(lambda: constrain(model, target, "sphere"), model)
    refused(lambda: release(model, target), model)


def test_thousands_of_rules_and_of_tensors():
    model = nn.Module()
    model.many = nn.ParameterList(torch.ones(1) for _ in range(3000))
    rules = {f"many.{i}": "sphere" for i in range(10)}
    message = refused(lambda: constrain(model, {**rules, "many.x": "ball"}))
    assert "Under 'many' there are 0, 1, 2" in message
    model.many = model.many[:300]
    globs = {f"**.{i}.*none*": "sphere" for i in range(1000)}
    with pytest.raises(ConfigErrors) as caught, Steps():
        constrain(model, globs)
    assert str(caught.value).count("No tensor") == len(caught.value.exceptions) <= 20


NUMBERS = [
    *(0, -1, 1e300, -1e300, 1e38, 1e-300, float("inf"), float("nan"), True, 10**400, 2**40),
    *("", b"", "1e-3", [], {}, 1j, [10**400], [[10**400]], [[1e300] * 4] * 4, [2**40], [[]]),
    *([[1], [1, 2]], [[None]], [{}], [["sphere"]], ["sphere", 3], {"a": 1}, [float("nan")]),
]


@pytest.mark.filterwarnings("ignore:.*next to the boundary:UserWarning")
@pytest.mark.parametrize("name", names())
def test_every_argument_of_every_constraint_meets_numbers_that_are_none(name):
    """Each is accepted, or refused by a sentence that names the tensor."""
    cls, shape = get(name), get(name).examples[0][1]
    for key in list(inspect.signature(cls).parameters):
        arguments, shape = next((e for e in cls.examples if key in e[0]), cls.examples[0])
        for number in NUMBERS:
            model = nn.Module()
            model.w = nn.Parameter(torch.ones(shape))
            try:
                constrain(model, "w", {"name": name, **arguments, key: number})
            except (ValueError, TypeError) as error:
                assert str(error).startswith("'w': ") and "\n" not in str(error)
                assert torch.equal(model.w, torch.ones(shape))
            else:
                assert bool(torch.isfinite(model.w).all())


def test_a_number_that_the_dtype_cannot_hold():
    with pytest.raises(ValueError) as caught:
        constrain(nn.Linear(2, 2), "weight", "at_least(bound=1e300)")
    assert str(caught.value) == (
        "'weight': at_least(bound=1e+300): bound=1e+300 is too large in float32, in which the set "
        "is computed."
    )
    constrain(nn.Linear(2, 2).double(), "weight", "at_least(bound=1e300)")
    with pytest.raises(ValueError, match="curvature=1e-300 is zero in float32"):
        constrain(nn.Linear(2, 2), "weight", "product(parts=['lorentz(curvature=1e-300)'], dim=-1)")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("orthogonal(mapp=cayley)", "put text in quotes, as in mapp='cayley'."),
        ("orthogonal(cayley)", "put text in quotes, as in 'cayley'."),
        ({"name": "sphere", "radius": "1e-3"}, "got '1e-3' (str); YAML reads 0.001 as a number."),
        ({"name": "ball", "radius": "1e-9"}, "YAML reads 1.0e-09 as a number."),
        ({"name": "sphere", "radius": "inf"}, "must be a number greater than 0, got 'inf' (str)."),
        ("geotorch:Hurwits", "Did you mean 'Hurwitz'?"),
        ("geotorch:Unknown", "Known are AlmostOrthogonal, "),
    ],
)
def test_messages_say_what_to_do(spec, message):
    assert message in refused(lambda: constrain(nn.Linear(3, 3), "weight", spec))


@pytest.mark.parametrize(
    "function",
    [
        *(constrained.report, constrained.violations, constrained.assert_feasible),
        *(constrained.spec, constrained.rebase, constrained.release, constrained.baked_state_dict),
        lambda thing: constrain(thing, "weight", "sphere"),
        lambda thing: constrained.load_state_dict(thing, {}),
        lambda thing: constrained.writable(thing).__enter__(),
    ],
)
@pytest.mark.parametrize("thing", ["x", nn.Parameter(torch.ones(3)), None], ids=["str", "p", "n"])
def test_what_is_no_model_is_said_to_be_none(function, thing):
    with pytest.raises(TypeError, match=r"A model is a torch.nn.Module, got "):
        function(thing)


def test_a_parameter_is_named_once():
    with pytest.raises(TypeError, match=r"got a Parameter\.$"):
        constrain(nn.Parameter(torch.ones(3)), "weight", "sphere")


def test_a_number_beyond_the_range_is_said_to_be_too_large():
    for name, argument in (("sphere", "radius"), ("low_rank", "rank")):
        message = (
            rf"'{argument}' must be a .*number .*, got a .* of 1329 bits \(int\), which is too"
        )
        with pytest.raises(ValueError, match=message):
            constrain(nn.Linear(3, 3), {"weight": {"name": name, argument: 10**400}})


def test_data_of_any_size_that_is_written_out_is_taken():
    layer = nn.Linear(300, 300)
    mask = torch.ones(300, 300).tril().tolist()
    constrain(layer, "weight", {"name": "masked", "mask": mask})
    again = constrain(nn.Linear(300, 300), constrained.spec(layer))
    assert constrained.spec(again) == constrained.spec(layer)
    check_extent([[0.0] * 1000 for _ in range(1000)])
    with pytest.raises(SpecError, match=r"would have 1.0e\+06 values"):
        check_extent([[0.0] * 1000] * 1000)
    with pytest.raises(SpecError, match="more than 128 others"):
        parse({"name": "product", "parts": ["sphere"] * 300})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a\nb", "'a\\nb'"),
        ("x" * 100, "'" + "x" * 56 + "..."),
        (10**5000, "a whole number of 16610 bits"),
        ([1, [2, "a"]], "[1, [2, 'a']]"),
        (torch.ones(3), "a Tensor"),
        ([torch.ones(3)], "[a Tensor]"),
        (Sphere(), "sphere()"),
    ],
    ids=range(8),
)
def test_what_messages_quote(value, text):
    assert short(value).lower() == text.lower()
