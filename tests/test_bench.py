"""`vae-fast bench`: the suite at tiny sizes, and what is said of records whose numbers are known."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from vae_fast import cli

pytest.importorskip("typer")
pytest.importorskip("pytest_benchmark")
plt = pytest.importorskip("matplotlib.pyplot")

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
PARTS = {"forward": 0.2, "backward": 0.8}  # of the whole


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """`vae-fast bench` takes the benchmarks of this checkout, whatever is installed."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setitem(sys.modules, "vae_fast_benchmarks", importlib.import_module("benchmarks"))


@pytest.fixture
def comparison() -> ModuleType:
    """benchmarks/comparison.py, which writes the records."""
    return importlib.import_module("benchmarks.comparison")


@pytest.fixture
def harness() -> ModuleType:
    return importlib.import_module("benchmarks.harness")


@pytest.fixture
def settings() -> ModuleType:
    return importlib.import_module("benchmarks.settings")


@pytest.fixture
def record(
    comparison: ModuleType, settings: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """record(folder, {title: {provider: milliseconds of each round}}): a folder with one record. A number as a title
    is a batch of the MLP."""

    def three(rounds: list[float], share: float = 1) -> list[list[float]]:
        return [[1e-3 * t * share * f for f in (0.99, 1, 1.01)] for t in rounds]

    def write(name: str, cases: dict[str, dict[str, list[float]]], **conditions: Any) -> Path:
        monkeypatch.setattr(settings, "RESULTS", str(tmp_path / name))
        monkeypatch.setattr(settings, "QUICK", False)
        comparisons = [
            comparison.Comparison(
                title,
                {"model": "mlp", "batch": int(title)} if title.isdigit() else {},
                # Each round has three steps around its median.
                [
                    comparison.Result(
                        provider,
                        rounds=three(rounds),
                        parts={
                            name: comparison.Times(rounds=three(rounds, share))
                            for name, share in PARTS.items()
                        },
                        peak_bytes=700 << 20,
                    )
                    for provider, rounds in providers.items()
                ],
                {"forward": comparison.Least(250_000, normals=2000), "backward": comparison.Least(750_000)},
                copy_bandwidth=1e9,
                normals_per_second=1e6,
            )
            for title, providers in cases.items()
        ]
        path = comparison.save("case", comparisons)
        assert path is not None
        raw = json.loads(path.read_text())
        raw["conditions"].update(conditions)
        path.write_text(json.dumps(raw))
        return tmp_path / name

    return write


def test_the_suite_at_tiny_sizes(capsys: Capture) -> None:
    assert cli.run(["bench", "--quick", "--only", "bernoulli and not continuous and not linear"]) == 0
    assert "2 ran, and every provider was right" in capsys.readouterr().out


def work(off: float, case: dict[str, Any]) -> Any:
    """100 MB of ones, in two parts, the second `off`."""
    import torch

    from benchmarks.work import Work

    def check(i: int, outputs: tuple[Any, ...]) -> None:
        assert all(bool((t == 1).all()) for t in outputs), "not all are 1"

    return Work(
        lambda i: (torch.ones(case["n"]), torch.ones(case["n"])),
        check,
        {
            "first": lambda i: lambda: (torch.ones(case["n"]),),
            "second": lambda i: lambda: (torch.ones(case["n"]) + off,),
        },
    )


def test_only_the_call_is_timed(harness: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the preparation of a step, the step and the end of its results set forward."""
    now = 0
    monkeypatch.setattr(harness, "time", SimpleNamespace(perf_counter=lambda: now))

    def takes(seconds: int) -> None:
        nonlocal now
        now += seconds

    class Output:
        def __del__(self) -> None:
            takes(10)

    def prepare(i: int) -> Any:
        takes(100)
        return lambda: (takes(1), Output())

    assert harness._times(prepare, 4, itertools.count()) == [11, 11, 11, 11]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory in /proc")
def test_a_comparison_times_parts_and_measures_memory(
    harness: ModuleType, settings: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "QUICK", False)
    providers = [harness.Provider("vae_fast", partial(work, 0))]
    least = {"first": harness.Least(10), "second": harness.Least(20)}
    found = harness.compare(
        "t", {"n": 25_000_000}, providers, least=least, rounds=2, turn_seconds=0.1
    ).record({})
    (ours,) = found["providers"]
    assert 190e6 < ours["peak_bytes"] < 230e6
    assert set(ours["parts"]) == set(found["parts"]) == {"first", "second"}
    assert [len(part["round_medians_s"]) for part in ours["parts"].values()] == [2, 2]
    assert found["bytes_moved"] == 30
    assert found["parts"]["second"]["bytes_moved"] == 20
    assert found["floor_s"] == pytest.approx(found["parts"]["first"]["floor_s"] * 3)


def test_no_memory_is_told_where_it_is_kept(
    harness: ModuleType, settings: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "QUICK", False)
    monkeypatch.setattr(settings, "ALLOCATOR", "tuned")
    providers = [harness.Provider("vae_fast", partial(work, 0))]
    assert harness.compare("t", {"n": 10}, providers, rounds=1, turn_seconds=0).base.peak_bytes is None


def test_a_wrong_part_fails_before_anything_is_timed(
    harness: ModuleType, settings: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = [harness.Provider("vae_fast", partial(work, 0.5))]
    for quick in (True, False):
        monkeypatch.setattr(settings, "QUICK", quick)
        with pytest.raises((AssertionError, RuntimeError), match="not all are 1"):
            harness.compare("t", {"n": 10}, providers, rounds=1, turn_seconds=0)


def test_inputs_are_not_made_for_a_table_that_nobody_wants(
    harness: ModuleType, comparison: ModuleType, settings: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Disabled:
        disabled = True
        extra_info: ClassVar[dict[str, float]] = {}

        def __call__(self, step: Any, i: int) -> Any:
            return step(i)

    def ours(case: Any) -> Any:
        raise AssertionError("made inputs")

    monkeypatch.setattr(settings, "QUICK", True)  # writes nothing
    done = comparison.Comparison("t", {}, [comparison.Result("vae_fast", rounds=[[1.0]])])
    harness.Suite("t", ours).add(done, Disabled())


def test_a_wrong_provider_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from benchmarks import run

    for name in ("__init__.py", "conftest.py", "settings.py"):
        shutil.copy(BENCHMARKS / name, tmp_path)
    (tmp_path / "bench_it.py").write_text("def test_it(): assert False, 'off by 0.5'")
    monkeypatch.setattr(run, "PACKAGE", tmp_path)
    assert cli.run(["bench", "--quick"]) == 1
    assert "1 benchmark(s) failed; test_it: AssertionError: off by 0.5" in capsys.readouterr().err


def test_without_the_benchmarks_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "vae_fast_benchmarks", None)
    assert cli.run(["bench", "--quick"]) == 1
    assert "vae_fast_benchmarks is not installed" in capsys.readouterr().err


def test_options_are_the_benchmarks_own(capsys: Capture) -> None:
    assert cli.run(["bench", "--help"]) == 0
    assert re.search(
        r"vae-fast bench .*--quick.*--only.*--out.*--allocator.*--compare.*--report",
        capsys.readouterr().out,
        re.S,
    )
    assert cli.run(["bench", "--no-such-option"]) == 2


def test_a_pattern_that_matches_nothing(capsys: Capture) -> None:
    assert cli.run(["bench", "--quick", "--only", "no_such_benchmark"]) == 1
    assert "no benchmark's name matches" in capsys.readouterr().err


def test_compare_names_regressions_beyond_noise(record: Any, capsys: Capture) -> None:
    steady = [10.0, 10.1, 9.9, 10.0]
    noisy = [6.0, 9.0, 10.0, 16.0]
    a = record(
        "a", {t: {"eager": steady, "vae_fast": steady} for t in ("worse", "better", "same", "small", "gone")}
    )
    after = {
        "worse": [13.0, 13.1, 12.9, 13.0],
        "better": [5.0, 5.1, 4.9, 5.0],
        "same": [10.2, 10.1, 10.3, 10.2],
    }
    b = record(
        "b", {t: {"eager": steady, "vae_fast": r} for t, r in after.items()} | {"small": {"vae_fast": noisy}}
    )
    assert cli.run(["bench", "--compare", str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^slower +1\.30x the time +worse: 10 ms -> 13 ms, the others 1\.00x$", out, re.M)
    assert re.search(r"^faster +0\.50x the time +better: 10 ms -> 5 ms", out, re.M)
    assert re.search(r"^slower +1\.30x the time +worse, forward alone: 2 ms -> 2\.6 ms", out, re.M)
    # each with its two parts
    assert "3 slower, 3 faster, 6 the same within noise; 3 in one record alone" in out
    assert cli.run(["bench", "--compare", str(b), str(b)]) == 0
    assert cli.run(["bench", "--compare", str(a / "case.json"), str(a)]) == 0, "a file is taken as well"


def test_compare_refuses_what_cannot_be_compared(record: Any, tmp_path: Path, capsys: Capture) -> None:
    a = record("a", {"t": {"vae_fast": [1.0]}})
    other = record("other", {"t": {"vae_fast": [1.0]}}, threads=977)
    tuned = record("tuned", {"t": {"vae_fast": [1.0]}}, allocator="tuned")
    broken = tmp_path / "broken.json"
    broken.write_text("[1, 2")
    for b, message in (
        (other, "threads is .* in A and 977 in B"),
        (tuned, "A has the allocator default, B tuned"),
        (broken, "broken.json: not a record of the benchmarks"),
        (tmp_path / "nothing", "nothing: No such file or directory"),
    ):
        assert cli.run(["bench", "--compare", str(a), str(b)]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_the_verdict_counts_wins_ties_and_losses(record: Any) -> None:
    from benchmarks import records, verdict

    ours = [10.0, 10.0, 10.0, 10.0]
    eager = {
        "win": [20.0, 21.0, 19.0, 20.0],
        "loss": [5.0, 5.0, 5.1, 4.9],
        "within the margin": [10.3, 10.3, 10.3, 10.3],
        "now this way, now that": [20.0, 20.0, 9.0, 9.0],
    }
    folder = record("a", {title: {"eager": rounds, "vae_fast": ours} for title, rounds in eager.items()})
    lines = verdict.verdict(records.load(folder)["default"])
    assert lines[0].startswith("against eager: wins 1, ties 2, loses 1 of 4")
    assert lines[1] == "loses: 0.50x eager's speed in loss"
    assert [line.rpartition(" in ")[2] for line in lines[2:]] == [
        "loss, forward alone",
        "loss, backward alone",
        "within the margin",
        "now this way, now that",
    ]


def test_report(record: Any, settings: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = tmp_path / "docs" / "benchmarks"
    monkeypatch.setattr(settings, "DOCS", docs)
    first, second = {"eager": [20.0], "vae_fast": [10.0]}, {"jax.jit": [5.0], "vae_fast": [10.0]}
    folder = record("a", {"first": first, "second": second, "128": first, "1024": first})
    assert cli.run(["bench", "--report", "--out", str(folder)]) == 0
    text = (docs / "report.md").read_text()
    whole, parts, memory = (line for line in text.splitlines() if line.startswith("| second"))
    assert whole == "| second | 10 | 9.9 to 10.1 | 10% (20%) |  | 0.50x **(loses)** |"
    twice = "0.50x **(loses)** / 0.50x **(loses)**"
    assert parts == f"| second | 2 / 8 | 12% (100%) / 9% |  | {twice} |"
    assert memory == "| second |  | 734 | 734 |"
    assert "pytest benchmarks" in text
    for name in ("batch.png", "speedup.png", "floor.png", "memory.png"):
        assert f"({name})" in text
        pixels = plt.imread(docs / name)[..., :3]
        assert pixels.std() > 0.05, "an empty plot"


def test_every_committed_record_can_be_read() -> None:
    from benchmarks import records

    found = [p for p in (BENCHMARKS / "results").rglob("*.json") if "gpu" not in p.parts]
    assert found
    for path in found:
        for r in records.load(path).values():
            assert all(case.timings for case in r.cases)
            text = path.read_text()
            assert not re.search(r'"/(home|root|tmp|work)/', text)
