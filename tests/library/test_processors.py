"""The runs under other processors' settings: their shares, their environment, their table."""

from tests.conftest import is_chosen
from tests.library import processors
from tests.library.processors import SETTINGS, Outcome, Setting, can_run, run, table


def test_a_share_is_the_same_for_a_seed_and_grows_with_the_share():
    names = [f"tests/constraints/test_laws.py::test_law[{i}]" for i in range(4000)]
    tenth = {name for name in names if is_chosen(name, 0.1, 0)}
    assert 320 <= len(tenth) <= 480
    assert tenth <= {name for name in names if is_chosen(name, 0.2, 0)}
    assert tenth != {name for name in names if is_chosen(name, 0.1, 1)}
    assert all(is_chosen(name, 1.0, 0) for name in names)
    assert not any(is_chosen(name, 0.0, 0) for name in names)


def test_the_settings_are_as_many_as_promised():
    assert len(SETTINGS) >= 5 and len({str(s.environment) for s in SETTINGS}) == len(SETTINGS)
    assert all(any(key in s.environment for s in SETTINGS) for key in ("MKL_CBWR",))
    assert {s.environment["OMP_NUM_THREADS"] for s in SETTINGS} == {"1", "2"}


def test_instructions_that_a_processor_lacks_are_not_asked_for():
    runnable = {level: [s for s in SETTINGS if can_run(s, level)] for level in processors.LEVELS}
    assert len(runnable["DEFAULT"]) < len(runnable["AVX2"]) < len(runnable["AVX512"])
    assert runnable["AVX512"] == list(SETTINGS)
    # A processor that is not an x86 has other names for its instructions.
    assert [s for s in SETTINGS if can_run(s, "SVE256")] == runnable["DEFAULT"]


def test_a_test_that_rests_on_the_processor_is_found(tmp_path):
    file = tmp_path / "test_rests_on_it.py"
    file.write_text(
        "import pytest, torch\n"
        "def test_passes(): pass\n"
        "def test_skips(): pytest.skip('no')\n"
        "def test_threads(): assert torch.get_num_threads() == 1\n"
        "def test_instructions():\n"
        # Some versions say "NO AVX" for "DEFAULT".
        "    assert torch.backends.cpu.get_cpu_capability() in ('AVX2', 'AVX512')\n"
    )
    least = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "2"}
    options = [str(file), "-c", str(processors.ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    outcome = run(Setting("least", least), options)
    assert outcome.passed == 1 and not outcome.problem
    names = [name.rpartition("::")[2] for name in outcome.failed]
    assert names == ["test_instructions", "test_threads"]
    outcome = run(Setting("none", {}), [*options, "-k", "nothing_of_the_kind"])
    assert outcome.problem == "pytest ended with 5"


def test_the_table_names_what_failed():
    one, other = SETTINGS[:2]
    text = table([(one, Outcome(7)), (other, Outcome(5, ("a::test_b", "a::test_c")))])
    assert f"| {one.name} | `OMP_NUM_THREADS=1` | 7 | 0 |" in text
    assert f"| {other.name} | `OMP_NUM_THREADS=2` | 5 | 2 |" in text
    assert f"- {other.name}: `a::test_c`" in text and "No test failed" not in text
    assert "No test failed" in table([(one, Outcome(7))])
    assert "not on this processor" in table([(one, Outcome(problem="not on this processor"))])
