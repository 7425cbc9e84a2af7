import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

import constrained
from constrained import constrain
from tests.promises.checkpoints import same


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def layer():
    return constrain(nn.Linear(3, 3), "weight", "ball(radius=2)")


def metadata_of(file):
    with safe_open(file, "pt") as opened:
        return opened.metadata()


class Tensors(nn.Module):
    """A module of buffers of these names."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def round_trip(file, model, fresh):
    constrained.save(model, file)
    constrained.load(file, fresh)
    assert same(fresh.state_dict(), model.state_dict())
    assert [t.dtype for t in fresh.buffers()] == [t.dtype for t in model.buffers()]


class TestContent:
    def test_is_that_of_the_state_dict(self, layer, file):
        constrained.save(layer, file)
        found = safetensors.torch.load_file(file)
        state = layer.state_dict()
        assert same({key: found[key] for key in state}, state) and len(found) == len(state)

    def test_has_spec_and_versions(self, layer, file):
        constrained.save(layer, file)
        metadata = metadata_of(file)
        # Without it, from_pretrained of transformers refuses a file.
        assert metadata["format"] == "pt"
        record = json.loads(metadata["constrained"])
        assert record["format"] == 1
        versions = {"constrained": constrained.__version__, "torch": torch.__version__}
        assert record["versions"] == versions
        assert record["constraints"] == {"weight": {"name": "ball", "radius": 2.0, "p": 2.0}}
        assert record["shapes"] == {"weight": [3, 3]} and record["foreign"] == {}

    def test_has_arguments_that_are_defaults_today(self, file, monkeypatch):
        model = constrain(nn.Linear(3, 3), "weight", "ball")
        constrained.save(model, file)
        init = constrained.get("ball").__init__.__wrapped__
        monkeypatch.setattr(init, "__defaults__", (5.0, 2.0))
        assert constrained.get("ball")().radius == 5
        assert torch.equal(constrained.load(file, nn.Linear(3, 3)).weight, model.weight)

    def test_lists_what_others_parametrized(self, file):
        model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
        constrained.save(constrain(model, "bias", nn.Softplus()), file)
        record = json.loads(metadata_of(file)["constrained"])
        assert record["foreign"] == {"weight": "_WeightNorm", "bias": "Softplus"}

    def test_has_a_tied_tensor_once(self, file):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        constrained.save(model, file)
        assert list(safetensors.torch.load_file(file)) == ["0.weight"]
        assert json.loads(metadata_of(file)["constrained"])["tied"] == {"1.weight": "0.weight"}


class TestTensors:
    @pytest.mark.parametrize(
        "dtype",
        [
            *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
            *(torch.complex64, torch.complex128, torch.bool, torch.uint8, torch.int64),
            *(torch.float8_e4m3fn, torch.float8_e5m2),
        ],
    )
    def test_of_any_dtype(self, dtype, file):
        tensor = (torch.arange(6.0).reshape(2, 3) - 2).to(dtype)
        other = torch.zeros(2, 3).to(dtype)
        constrained.save(Tensors(x=tensor), file)
        found = constrained.load(file, Tensors(x=other)).x
        assert found.dtype == dtype and torch.equal(
            found.view(torch.uint8), tensor.view(torch.uint8)
        )

    def test_of_any_layout_in_memory(self, file):
        base = torch.rand(4, 6)
        z = torch.randn(3, 2, dtype=torch.complex64)
        tensors = {
            "transposed": torch.rand(3, 4).T,
            "strided": base[::2, 1::3],
            "overlapping": base[1:3],
            "row": base[1],
            "expanded": torch.rand(1).expand(3),
            "channels_last": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "scalar": torch.tensor(2.5),
            "none": torch.empty(0, 3),
            "none_too": torch.empty(3, 0, dtype=torch.complex64),
            "conjugate": z.conj(),
            "negative": z.conj().imag,
            "adjoint": z.mH,
        }
        fresh = {
            key: torch.zeros_like(t.resolve_conj().resolve_neg()) for key, t in tensors.items()
        }
        round_trip(file, Tensors(**tensors), Tensors(**fresh))

    def test_that_share_memory(self, file):
        flat = torch.rand(6)
        model = Tensors(all=flat, first=flat[:4], last=flat[2:], alias=flat.detach())
        zeros = torch.zeros(6)
        twin = Tensors(all=zeros, first=zeros[:4], last=zeros[2:], alias=zeros.detach())
        round_trip(file, model, twin)
        apart = {key: torch.zeros_like(t) for key, t in model.named_buffers()}
        round_trip(file, model, Tensors(**apart))

    def test_and_extra_state(self, file):
        class Counter(nn.Module):
            def __init__(self, state=None):
                super().__init__()
                self.state = state

            def get_extra_state(self):
                return self.state

            def set_extra_state(self, state):
                self.state = state

        for state in (None, 3, "text", {"a": [1, 2.5, None, {"b": True}]}, torch.rand(2)):
            constrained.save(Counter(state), file)
            found = constrained.load(file, Counter(torch.zeros(2))).state
            assert torch.equal(found, state) if isinstance(state, torch.Tensor) else found == state
        content = file.read_bytes()
        for state in ((1, 2), {1: 2}, {"a": torch.rand(2)}, object(), b"bytes", float("nan")):
            with pytest.raises(TypeError, match="'_extra_state' is of type .* JSON can hold"):
                constrained.save(Counter(state), file)
        assert file.read_bytes() == content

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda: Tensors(x=torch.eye(3).to_sparse()), "'x' is sparse .*to_dense"),
            (lambda: Tensors(x=torch.rand(2, device="meta")), "'x' is on the meta device"),
            (lambda: nn.LazyLinear(3), "'weight' has no shape yet: call the model once"),
            (lambda: nn.Sequential(constrain(nn.LazyLinear(3), "weight", "sphere")), "'0.weight'"),
        ],
    )
    def test_that_a_file_cannot_hold(self, make, words, file):
        file.write_bytes(b"before")
        with pytest.raises(TypeError, match=words):
            constrained.save(make(), file)
        assert file.read_bytes() == b"before" and os.listdir(file.parent) == [file.name]

    @pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:torch.quantize_per_tensor")
    def test_of_a_dtype_that_a_file_cannot_hold(self, file):
        tensor = torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8)
        with pytest.raises(TypeError, match="'x' is of torch.quint8, which files of safetensors"):
            constrained.save(Tensors(x=tensor, y=torch.rand(2)), file)
        half = torch.rand(3, dtype=torch.complex64).to(torch.complex32)
        constrained.save(Tensors(x=half), file)
        found = constrained.load(file, Tensors(x=torch.zeros_like(half))).x
        assert torch.equal(torch.view_as_real(found), torch.view_as_real(half))


class TestPlace:
    def test_may_be_a_folder(self, layer, tmp_path):
        constrained.save(layer, tmp_path)
        assert os.listdir(tmp_path) == ["model.safetensors"]
        constrained.load(str(tmp_path), nn.Linear(3, 3))

    def test_may_be_a_link(self, layer, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "file")
        for _ in range(2):
            constrained.save(layer, tmp_path / "link")
            assert (tmp_path / "link").is_symlink() and (tmp_path / "file").is_file()

    def test_has_the_permissions_of_any_file(self, layer, file):
        before = os.umask(0o027)
        try:
            constrained.save(layer, file)
            assert stat.S_IMODE(file.stat().st_mode) == 0o640
            file.chmod(0o604)
            constrained.save(layer, file)
            assert stat.S_IMODE(file.stat().st_mode) == 0o604
        finally:
            os.umask(before)

    def test_must_be_there(self, layer, tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no folder '.*none' to write 'file'"):
            constrained.save(layer, tmp_path / "none" / "file")
        with pytest.raises(OSError, match="'/dev/null' is no file"):
            constrained.save(layer, "/dev/null")
        with pytest.raises(TypeError, match="The path of a file is a string"):
            constrained.save(layer, None)
        with pytest.raises(TypeError, match="A model is a"):
            constrained.save("model", tmp_path / "file")
        assert os.listdir(tmp_path) == []

    def test_that_cannot_be_written(self, layer, tmp_path):
        name = tmp_path / ("x" * 300)
        with pytest.raises(OSError):
            constrained.save(layer, name)
        assert os.listdir(tmp_path) == []


class TestAtomicity:
    def test_an_error_leaves_the_old_file(self, layer, file, monkeypatch):
        constrained.save(layer, file)
        content = file.read_bytes()

        def fail(*_):
            raise OSError("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", fail)
            with pytest.raises(OSError, match="disk full"):
                constrained.save(nn.Linear(3, 3), file)
        with monkeypatch.context() as patched:
            patched.setattr(
                safetensors.torch, "save_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
            )
            with pytest.raises(KeyboardInterrupt):
                constrained.save(nn.Linear(3, 3), file)
        assert file.read_bytes() == content and os.listdir(file.parent) == [file.name]

    def test_a_record_that_could_not_be_read_leaves_the_old_file(self, file):
        constrained.save(nn.Linear(3, 3), file)
        content = file.read_bytes()

        class Large(nn.Module):
            def get_extra_state(self):
                return "x" * 101_000_000

        with pytest.raises(OSError, match=r"(?i)could not be written: .*header ?too ?large"):
            constrained.save(Large(), file)
        assert file.read_bytes() == content and os.listdir(file.parent) == [file.name]

    @pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
    def test_a_kill_leaves_the_old_file(self, layer, file, moment):
        constrained.save(layer, file)
        content = file.read_bytes()
        program = f"""
            import os, signal, torch, constrained
            def kill(*_):
                os.kill(os.getpid(), signal.SIGKILL)
            {moment} = kill
            constrained.save(torch.nn.Linear(3, 3), {str(file)!r})
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)])
        assert done.returncode == -signal.SIGKILL
        assert file.read_bytes() == content

    def test_readers_see_whole_files(self, file):
        models = [nn.Linear(50, 50) for _ in range(2)]
        constrained.save(models[0], file)
        done = threading.Event()
        errors = []

        def read():
            fresh = nn.Linear(50, 50)
            while not done.is_set():
                try:
                    constrained.load(file, fresh)
                except Exception as error:
                    errors.append(error)
                if not any(torch.equal(fresh.weight, model.weight) for model in models):
                    errors.append("torn")

        reader = threading.Thread(target=read)
        reader.start()
        for i in range(30):
            constrained.save(models[i % 2], file)
        done.set()
        reader.join()
        assert errors == []
