import copy
import json
import re
import signal
import struct
import subprocess
import sys
import textwrap

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

import constrained
from constrained import constrain, parametrize, release
from tests.promises.checkpoints import SPECS, Network, bits, same


def network(**constraints):
    torch.manual_seed(1)
    return constrain(Network(), constraints or SPECS).eval()


def moved(model):
    """The same model in another state."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)
    return model


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def check_same(found, model):
    names = [[name for name, _ in m.named_parameters()] for m in (found, model)]
    # An optimizer's state is saved in this order.
    assert names[0] == names[1]
    state = found.state_dict()
    assert same({key: state[key] for key in model.state_dict()}, model.state_dict())
    assert len(state) == len(model.state_dict())
    assert constrained.spec(found) == constrained.spec(model)
    x = torch.rand(5, 4)
    assert torch.equal(found.eval()(x), model.eval()(x))


def check_refused(file, model, *words, error=ValueError):
    """It is refused in one sentence with these words, and the model is as it was."""
    before, kinds, spec = bits(model), [type(m) for m in model.modules()], constrained.spec(model)
    with pytest.raises(error) as caught:
        constrained.load(file, model)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 900, text
    assert all(word in text for word in words), text
    assert not re.search(r"('[^']+'): \1:", text), f"a path stands twice: {text}"
    after = bits(model)
    assert before[0] == after[0] and same(before[1], after[1])
    assert kinds == [type(m) for m in model.modules()] and spec == constrained.spec(model)


class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x.argmax(-1)))


class TestFreshModel:
    def test_gets_ties_buffers_and_extra_state(self, file):
        model = moved(network())
        model.counter.count = 7
        constrained.save(model, file)
        found = constrained.load(file, Network())
        check_same(found, model)
        assert found.counter.count == 7
        assert found.decoder.parametrizations.weight is found.encoder[0].parametrizations.weight

    def test_in_a_new_process(self, file):
        constrained.save(moved(constrain(nn.Linear(4, 4), "weight", "orthogonal")), file)
        program = f"""
            import sys, torch, constrained
            model = constrained.load({str(file)!r}, torch.nn.Linear(4, 4))
            assert constrained.spec(model) == {{"weight": {{"name": "orthogonal"}}}}
            constrained.assert_feasible(model)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)

    def test_that_holds_no_numbers_yet(self, file):
        model = constrain(nn.Linear(4, 4), "weight", "positive_definite")
        constrained.save(model, file)
        fresh = nn.utils.skip_init(nn.Linear, 4, 4)
        with torch.no_grad():
            fresh.weight.fill_(torch.nan)
        assert torch.equal(constrained.load(file, fresh).weight, model.weight)
        assert constrained.report(fresh).rows[0].moved < 1e-6

    def test_without_warnings_about_its_start(self, file):
        layer = nn.Linear(3, 3)
        with torch.no_grad():
            layer.weight.fill_(1e-30)
        with pytest.warns(UserWarning, match="next to the boundary"):
            constrain(layer, "weight", "positive")
        constrained.save(layer, file)
        constrained.load(file, nn.Linear(3, 3))

    def test_keeps_its_own_dtype(self, file):
        model = constrain(nn.Linear(4, 4).bfloat16(), "weight", "sphere")
        constrained.save(model, file)
        found = constrained.load(file, nn.Linear(4, 4))
        assert found.weight.dtype == torch.float32
        original = model.parametrizations.weight.original
        assert torch.equal(found.parametrizations.weight.original, original.float())

    def test_keeps_its_parameters(self, file):
        constrained.save(constrain(nn.Linear(4, 4), "weight", "sphere"), file)
        fresh = nn.Linear(4, 4)
        weight, bias = fresh.weight, fresh.bias
        constrained.load(file, fresh)
        assert fresh.parametrizations.weight.original is weight and fresh.bias is bias

    def test_on_the_meta_device(self, file):
        model = constrain(Tied(), "embed.weight", "sphere")
        constrained.save(model, file)
        with torch.device("meta"):
            fresh = Tied()
        check_refused_meta(file, fresh)
        found = constrained.load(file, fresh, assign=True)
        check_same(found, model)
        assert found.head.parametrizations.weight is found.embed.parametrizations.weight

    def test_on_the_meta_device_stays_tied_where_it_is_plain(self, file):
        model = Tied()
        constrained.save(model, file)
        with torch.device("meta"):
            fresh = Tied()
        found = constrained.load(file, fresh, assign=True)
        assert found.head.weight is found.embed.weight
        assert isinstance(found.head.weight, nn.Parameter)
        check_same(found, model)

    def test_on_the_meta_device_with_buffers_of_no_file(self, file):
        model = constrain(Network(), {"gain": "sphere"}).eval()
        constrained.save(model, file)
        with torch.device("meta"):
            fresh = Network()
        with pytest.warns(UserWarning, match="No file has the numbers of 'scratch', on the meta"):
            constrained.load(file, fresh, assign=True)
        check_same(fresh, model)

    def test_does_not_depend_on_the_file_afterwards(self, file):
        model = constrain(nn.Linear(4, 4), "weight", "sphere")
        constrained.save(model, file)
        with torch.device("meta"):
            fresh = nn.Linear(4, 4)
        constrained.load(file, fresh, assign=True)
        file.write_bytes(bytes(file.stat().st_size))
        assert torch.equal(fresh.weight, model.weight)

    @pytest.mark.parametrize(
        "spec",
        ["low_rank(rank=2)", {"name": "sphere", "view": "(g h) k -> g (h k)", "g": 2}],
    )
    def test_with_lazy_modules(self, file, spec):
        def make():
            return nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(2))

        model = constrain(make(), "0.weight", spec)
        model(torch.rand(2, 3))
        constrained.save(model, file)
        for fresh in (make(), constrain(make(), "0.weight", spec)):
            constrained.load(file, fresh)
            x = torch.rand(5, 3)
            assert torch.equal(fresh(x), model(x))
            assert constrained.spec(fresh) == constrained.spec(model)
            assert type(fresh[1]) is nn.Linear

    @pytest.mark.parametrize(
        ("make", "path", "spec"),
        [
            (lambda: nn.Conv2d(2, 4, 3), "weight", {"name": "orthogonal", "view": "conv"}),
            (lambda: nn.LSTM(3, 4), "weight_hh_l0", {"name": "orthogonal", "view": "gates"}),
            # An axis that is called like an argument of the ball.
            (
                lambda: nn.Linear(6, 4),
                "weight",
                {"name": "ball", "view": "p (q r) -> p q r", "q": 2},
            ),
            (lambda: nn.Linear(4, 4), "weight", ["positive", "ball(radius=0.5)"]),
        ],
    )
    def test_with_views_and_chains(self, file, make, path, spec):
        model = constrain(make(), path, spec)
        constrained.save(moved(model), file)
        for fresh in (make(), constrain(make(), path, spec)):
            constrained.load(file, fresh)
            assert torch.equal(getattr(fresh, path), getattr(model, path))
            assert constrained.spec(fresh) == constrained.spec(model)
            assert same(fresh.state_dict(), model.state_dict())

    def test_whose_paths_look_like_patterns(self, file):
        def make():
            return nn.ModuleDict({name: nn.Linear(3, 3) for name in ("a*", "ab", "[c]", "{d,e}")})

        model = make()
        for name in ("a*", "[c]", "{d,e}"):
            constrain(model, f"{name}.weight", "sphere")
        constrained.save(model, file)
        found = constrained.load(file, make())
        assert constrained.spec(found) == constrained.spec(model)
        assert same(found.state_dict(), model.state_dict())

    def test_of_other_sizes_is_refused(self, file):
        constrained.save(constrain(nn.Linear(4, 4), "weight", "sphere"), file)
        check_refused(file, nn.Linear(3, 4), "'weight'", "(4, 3) here", "(4, 4) in the file")
        check_refused(file, nn.Linear(4, 4, bias=False), "the model lacks 'bias'")
        constrained.save(constrain(nn.Linear(4, 4, bias=False), "weight", "sphere"), file)
        check_refused(file, nn.Linear(4, 4), "the file lacks 'bias'")
        check_refused(file, nn.Sequential(nn.Linear(4, 4)), "no tensor 'weight'")
        constrained.save(nn.Linear(4, 4), file)
        check_refused(file, nn.Linear(4, 3), "size mismatch for weight")

    def test_without_the_ties_is_refused(self, file):
        constrained.save(constrain(Tied(), "embed.weight", "sphere"), file)
        words = "the file ties 'head.parametrizations.weight.original'"
        check_refused(file, Tied(tied=False), words)

    def test_with_ties_of_its_own_is_refused(self, file):
        constrained.save(Tied(tied=False), file)
        check_refused(file, Tied(), "'embed.weight' and 'head.weight' are one tensor here")
        both = {"embed.weight": "sphere", "head.weight": "sphere"}
        constrained.save(constrain(Tied(tied=False), both), file)
        check_refused(file, Tied(), "'embed.weight' and 'head.weight' are tied here")

    def test_that_is_real_is_no_complex_one(self, file):
        constrained.save(nn.Linear(3, 3, dtype=torch.complex64), file)
        check_refused(file, nn.Linear(3, 3), "complex in the file", "real (torch.float32) here")


def check_refused_meta(file, model):
    with pytest.raises(ValueError, match="on the meta device, which has no memory.*assign=True"):
        constrained.load(file, model)
    assert constrained.spec(model) == {}


class TestConstrainedModel:
    def test_that_agrees(self, file):
        model = moved(network())
        constrained.save(model, file)
        check_same(constrained.load(file, network()), model)

    def test_in_another_order(self, file):
        model = Network()
        for path, spec in reversed(SPECS.items()):
            constrain(model, path, spec)
        constrained.save(moved(model), file)
        check_same(constrained.load(file, Network()), model)

    def test_in_part(self, file):
        model = moved(network())
        constrained.save(model, file)
        part = {k: v for k, v in SPECS.items() if k != "gain"}
        check_same(constrained.load(file, network(**part)), model)

    def test_under_another_path_of_a_tied_tensor(self, file):
        model = moved(network())
        constrained.save(model, file)
        specs = {("decoder.weight" if k == "encoder.0.weight" else k): v for k, v in SPECS.items()}
        check_same(constrained.load(file, network(**specs)), model)

    def test_by_another_constraint_is_refused(self, file):
        constrained.save(network(), file)
        here = "'gain' has low_rank(rank=3) here, and low_rank(rank=2) in the file"
        check_refused(file, network(**{**SPECS, "gain": "low_rank(rank=3)"}), here)
        check_refused(file, network(**{**SPECS, "shift": "positive"}), "'shift' has positive()")
        lazy = constrain(nn.LazyLinear(3), "weight", "sphere")
        layer = nn.Linear(4, 3)
        constrained.save(layer, file)
        with pytest.raises(ValueError, match=r"'weight' has sphere\(\) here, and is plain"):
            constrained.load(file, lazy)

    def test_that_others_parametrized(self, file):
        def make():
            return nn.Sequential(
                nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3)
            )

        model = constrain(make(), "1.weight", nn.Softplus())
        constrained.save(model, file)
        again = constrain(make(), "1.weight", nn.Softplus())
        constrained.load(file, again)
        assert torch.equal(again(torch.ones(3)), model(torch.ones(3)))
        check_refused(file, make(), "'1.weight' was parametrized by Softplus")
        plain = constrain(make(), "1.weight", "positive")
        check_refused(file, plain, "'1.weight' has positive() here, and Softplus in the file")

    def test_of_several_constraints(self, file):
        def make():
            layer = nn.Linear(3, 3)
            layer.weight = nn.Parameter(torch.rand(3, 3) + 1)
            for _ in range(2):
                parametrize.register_parametrization(layer, "weight", constrained.get("positive")())
            return layer

        model = make()
        constrained.save(model, file)
        assert torch.equal(constrained.load(file, make()).weight, model.weight)
        check_refused(file, nn.Linear(3, 3), "parametrized by positive() then positive()")


class TestWrappers:
    @pytest.fixture
    def model(self):
        return constrain(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "0.weight", "sphere")

    def wrapped(self, model):
        class Engine(nn.Module):
            def __init__(self, child, name="module"):
                super().__init__()
                self.add_module(name, child)

        yield Engine(model)
        yield Engine(model, "_forward_module")
        yield torch.compile(model, backend="eager")
        yield Engine(torch.compile(Engine(model), backend="eager"))
        inside = copy.copy(model)
        inside._modules = dict(model._modules)
        inside._modules["0"] = torch.compile(model[0], backend="eager")
        yield inside

    def test_do_not_show_in_files(self, model, file):
        constrained.save(model, file)
        expected = safetensors.torch.load_file(file)
        for wrapper in self.wrapped(model):
            constrained.save(wrapper, file)
            found = safetensors.torch.load_file(file)
            assert same(found, {key: expected[key] for key in found}) and len(found) == 4

    def test_do_not_matter_to_load(self, model, file):
        constrained.save(moved(model), file)
        fresh = [nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(5)]
        for layers, start in zip(fresh, range(5), strict=True):
            wrapper = list(self.wrapped(layers))[start]
            assert constrained.load(file, wrapper) is wrapper
            assert torch.equal(layers[0].weight, model[0].weight)
            constrained.load(file, wrapper)
            assert constrained.spec(layers) == constrained.spec(model)

    def test_do_not_matter_in_files_of_others(self, model, file):
        for prefix in ("module.", "_orig_mod.", "_forward_module.module."):
            state = {prefix + k: v for k, v in nn.Linear(3, 3).state_dict().items()}
            safetensors.torch.save_file(state, file)
            layer = constrained.load(file, nn.Linear(3, 3))
            assert torch.equal(layer.bias, state[prefix + "bias"])


class TestFilesOfOthers:
    def test_plain_values_go_into_a_constrained_model(self, file):
        source = Tied()
        with torch.no_grad():
            source.embed.weight.div_(source.embed.weight.norm(dim=1, keepdim=True))
        safetensors.torch.save_model(source, file)
        model = constrained.load(file, constrain(Tied(), "embed.weight", "sphere"))
        torch.testing.assert_close(model.head.weight, source.head.weight)
        check_refused(file, constrain(Tied(), "embed.weight", "positive"), "embed.weight")

    def test_free_parameters_go_into_a_model_with_the_same_constraints(self, file):
        model = constrain(nn.Linear(3, 3), "weight", "orthogonal")
        safetensors.torch.save_file(model.state_dict(), file)
        found = constrained.load(file, constrain(nn.Linear(3, 3), "weight", "orthogonal"))
        assert torch.equal(found.weight, model.weight)
        check_refused(file, nn.Linear(3, 3), "no record of constraints, so constrain the model")

    def test_missing_keys_are_an_error(self, file):
        safetensors.torch.save_file({"weight": torch.zeros(3, 3)}, file)
        check_refused(file, nn.Linear(3, 3), "the file lacks 'bias'")


class Planted:
    """Code that a pickle would run."""

    def __reduce__(self):
        return (exec, ("import builtins; builtins.planted = True",))


def written(file, record, tensors=None):
    tensors = {"weight": torch.zeros(2, 2)} if tensors is None else tensors
    text = record if isinstance(record, str) else json.dumps(record)
    safetensors.torch.save_file(tensors, file, {"constrained": text})


def record_of(file):
    with safetensors.safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["constrained"])


class TestHostileFiles:
    @pytest.fixture
    def saved(self, file):
        constrained.save(constrain(nn.Linear(2, 2), "weight", "sphere"), file)
        return record_of(file), safetensors.torch.load_file(file)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"abc",
            struct.pack("<Q", 2**60) + b"{}",
            struct.pack("<Q", 10) + b'{"a":{}}  ',
            struct.pack("<Q", 2) + b"[]",
            struct.pack("<Q", 2) + b"{}junk",
            b"\0" * 4096,
        ],
    )
    def test_that_are_none(self, file, content):
        file.write_bytes(content)
        check_refused(file, nn.Linear(2, 2), "is no file of safetensors, or damaged")

    @pytest.mark.parametrize("zipped", [False, True])
    def test_that_are_pickles(self, file, zipped):
        torch.save(Planted(), file, _use_new_zipfile_serialization=zipped)
        check_refused(file, nn.Linear(2, 2), "torch.load(path, weights_only=True)")
        assert not hasattr(__import__("builtins"), "planted")

    def test_that_are_cut_off(self, file, saved):
        content = file.read_bytes()
        model = nn.Linear(2, 2)
        for size in range(0, len(content), 7):
            file.write_bytes(content[:size])
            check_refused(file, model, "is no file of safetensors, or damaged")

    def test_with_flipped_bytes(self, file, saved):
        content = file.read_bytes()
        start = len(content) - 24
        for i in range(0, start, 5):
            changed = bytearray(content)
            changed[i] ^= 0x15
            file.write_bytes(changed)
            model = nn.Linear(2, 2)
            try:
                constrained.load(file, model)
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) < 900
                assert type(model) is nn.Linear

    @pytest.mark.parametrize(
        "record",
        [
            "",
            "[",
            "[" * 100_000,
            "null",
            "[1]",
            {},
            {"format": 1},
            {"format": "1"},
            "{" * 50_000,
        ],
    )
    def test_with_a_record_that_is_none(self, file, record):
        written(file, record)
        check_refused(file, nn.Linear(2, 2), "The record of constraints in")

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("format", 2, "has the format 2, and this version reads 1"),
            ("format", True, "is damaged"),
            ("versions", [], "'versions' holds something else"),
            ("constraints", [], "'constraints' holds something else"),
            ("constraints", {"weight": "sphere"}, "'constraints' holds something else"),
            ("constraints", {}, "of other tensors"),
            ("constraints", {"weight": {"name": "nothing"}}, "Unknown constraint 'nothing'"),
            ("constraints", {"weight": {"name": "os:system"}}, "not a subclass"),
            ("constraints", {"weight": {"name": "evil.module:Class"}}, "is not imported"),
            ("constraints", {"weight": {}}, "'weight'"),
            ("constraints", {"weight": {"name": ["sphere"]}}, "'weight'"),
            ("constraints", {"weight": {"name": "low_rank", "rank": 2**40}}, "'weight'"),
            (
                "constraints",
                {"weight": {"name": "sphere", "radius": -1}},
                "'weight': sphere: radius",
            ),
            ("constraints", {"weight": {"name": "spher"}}, "'weight': Unknown constraint 'spher'"),
            ("constraints", {"weight": {"name": "orthogonal"}}, None),
            ("shapes", {"weight": [-1, 2]}, "'shapes' holds something else"),
            ("shapes", {"weight": [2**62, 2**62]}, "(2, 2) here"),
            ("shapes", {"weight": []}, "(2, 2) here"),
            ("foreign", {"bias": "Evil"}, "'bias' was parametrized by Evil"),
            ("foreign", {"nothing": "Evil"}, "'nothing' was parametrized by Evil"),
            ("foreign", {"bias": 3}, "'foreign' holds something else"),
            ("tied", {"bias": "nothing"}, "cannot be tied to 'nothing'"),
            ("tied", {"a": "a"}, "cannot be tied to 'a'"),
            ("tied", {"a": "b", "b": "a"}, "cannot be tied to"),
            ("tied", {"a": "bias"}, "the model lacks 'a'"),
            ("complex", {"bias": 1}, "must be a list of keys"),
            ("complex", ["bias", "nothing"], "cannot be complex"),
            ("complex", ["bias", "bias"], "'bias'"),
            ("other", {"bias": 3}, "is there twice"),
            ("other", {"a": 3}, "the model lacks 'a'"),
            ("modules", {"": "1"}, "'modules' holds something else"),
        ],
    )
    def test_with_something_else_in_the_record(self, file, saved, name, value, words):
        record, tensors = saved
        written(file, {**record, name: value}, tensors)
        if words is None:
            # Another constraint of the same parameters: that is what the file says.
            constrained.load(file, nn.Linear(2, 2))
            return
        check_refused(file, nn.Linear(2, 2), words)

    def test_with_a_record_too_long_to_be_one(self, file, saved):
        record, tensors = saved
        record["constraints"] = {f"weight{i}": {"name": "sphere"} for i in range(200_000)}
        record["shapes"] = {path: [2, 2] for path in record["constraints"]}
        written(file, record, tensors)
        check_refused(file, nn.Linear(2, 2), "no tensor 'weight0'")

    def test_with_numbers_that_are_none(self, file, saved):
        record, tensors = saved
        key = "parametrizations.weight.original"
        for model in (nn.Linear(2, 2), constrain(nn.Linear(2, 2), "weight", "sphere")):
            written(file, record, {**tensors, key: torch.full((2, 2), torch.nan)})
            check_refused(file, model, "'weight'", "holds NaN or infinite values")
            written(file, record, {**tensors, key: torch.zeros(3, 2)})
            check_refused(file, model, "weight")
            written(file, record, {"bias": tensors["bias"]})
            check_refused(file, model, "weight")

    def test_and_what_is_no_path(self, file, saved):
        model = nn.Linear(2, 2)
        check_refused(file.with_name("none"), model, "There is no file", error=FileNotFoundError)
        check_refused(3, model, "a string or a pathlib.Path", error=TypeError)
        check_refused("/dev/null", model, "is no file", error=OSError)
        for use in (constrained.save, lambda model, path: constrained.load(path, model)):
            with pytest.raises(ValueError, match="No file is called .*, which holds a NUL"):
                use(nn.Linear(2, 2), "a\0")
        with pytest.raises(TypeError, match="the path of the file first"):
            constrained.load(model, file)
        with pytest.raises(TypeError, match=r"A model is a torch\.nn\.Module"):
            constrained.load(file, "model")


def test_a_released_model_serves_what_was_saved(file):
    model = moved(network())
    constrained.save(model, file)
    served = release(constrained.load(file, Network())).eval()
    x = torch.rand(5, 4)
    torch.testing.assert_close(served(x), model(x))
    assert constrained.spec(served) == {}


def test_ctrl_c_while_a_tensor_is_read_is_no_damaged_file(tmp_path, monkeypatch):
    constrained.save(nn.Linear(2, 2), tmp_path)
    original = safetensors.safe_open

    class Interrupted:
        """What safetensors does with an exception in the Python code that it calls."""

        def __init__(self, *args):
            self.file = original(*args)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def get_tensor(self, key):
            try:
                signal.raise_signal(signal.SIGINT)
                return self.file.get_tensor(key)
            except KeyboardInterrupt:
                raise RuntimeError("could not determine the shape") from None

    monkeypatch.setattr(safetensors, "safe_open", Interrupted)
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        constrained.load(tmp_path, model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
