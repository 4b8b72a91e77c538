"""What a user gets from pip: sdist and wheel build, install beside torch alone, and import quickly and quietly.

Nothing here needs a network: builds use this environment's setuptools and pybind11, and the "empty" environment sees
this environment's torch, with torch's own dependencies and nothing else, through links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import pytest

from conftest import HANG

ROOT = Path(__file__).parent.parent
SECRET = ("VAE_FAST_", "PYTHON", "CXX", "CC")  # settings of this run that a user's shell would not have

pytestmark = pytest.mark.slow


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a command in a clean environment; its standard output. Fails with everything it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(SECRET)}
    done = subprocess.run(
        [str(c) for c in command],
        env=clean | (env or {}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(interpreter: Path | str, code: str, **env: str) -> str:
    """Run Python code outside the checkout, so that only what is installed can be imported."""
    return run(interpreter, "-c", code, env=env, cwd=Path(sys.prefix))


def build_wheel(source: Path, target: Path, **env: str) -> Path:
    source = shutil.copytree(
        source, target / "source"
    )  # setuptools would reuse what an earlier build left there
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", target, source, env=env)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of a copy of this checkout, without what was built in it."""
    folder = tmp_path_factory.mktemp("sdist")
    built = shutil.ignore_patterns(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=built)
    shutil.copytree(ROOT / ".ci", folder / "source" / ".ci")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, folder, cwd=folder / "source")
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def unpacked(sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent / "unpacked", filter="data")
    (folder,) = (sdist.parent / "unpacked").iterdir()
    return folder


@pytest.fixture(scope="module")
def wheel(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its kernels are compiled quickly: the checkout's own are what the other tests run."""
    return build_wheel(unpacked, tmp_path_factory.mktemp("wheel"), CXXFLAGS="-O0")


@pytest.fixture(scope="module")
def wheel_without_compiler(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(unpacked, tmp_path_factory.mktemp("wheel"), CC="/bin/false", CXX="/bin/false")


def required_by(*names: str) -> Iterator[str]:
    """The distributions and all that they need, of what is installed here."""
    seen: set[str] = set()
    todo = list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # its marker is for another platform
            continue
        yield name
        todo += [m[0] for r in requirements if "extra ==" not in r and (m := re.match(r"[\w.-]+", r))]


def environment(folder: Path, *install: str | Path, also: Sequence[str] = (), **env: str) -> Path:
    """A new virtual environment with torch, `also` and what pip is to install; its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    site = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in required_by("torch", *also):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    pip = (sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--no-index")
    run(*pip, *install, env=env)  # resolves torch too: it must be satisfied by what is there
    return interpreter


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(tmp_path_factory.mktemp("venv"), wheel)


def test_sdist_has_what_a_build_and_a_test_run_need(unpacked: Path) -> None:
    tracked = [*ROOT.glob("csrc/**/*.*"), *ROOT.glob("vae_fast/**/*.py"), *ROOT.glob("tests/*.py")]
    tracked += [
        ROOT / n for n in ("LICENSE", "Makefile", "setup.py", "vae_fast/py.typed", "benchmarks/harness.py")
    ]
    missing = [str(f.relative_to(ROOT)) for f in tracked if not (unpacked / f.relative_to(ROOT)).exists()]
    assert not missing
    assert not list(unpacked.rglob("*.so"))


def test_wheel_has_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"vae_fast", "vae_fast_benchmarks"}
    assert "vae_fast/py.typed" in names
    assert any(re.fullmatch(r"vae_fast/backends/native/_cpu\..*(so|pyd)", n) for n in names)
    sources = {str(f.relative_to(ROOT)) for f in ROOT.glob("vae_fast/**/*.py")}
    assert sources <= set(names)


def test_wheel_has_the_benchmarks_without_their_records(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {f"vae_fast_benchmarks/{f.name}" for f in ROOT.glob("benchmarks/*.py")}
    assert {n for n in names if n.startswith("vae_fast_benchmarks/")} == sources


def test_vae_fast_does_not_look_outside_itself(wheel: Path) -> None:
    """It has no benchmarks of its own, names them where the command hands on to them, and reads no file above it."""
    archive = zipfile.ZipFile(wheel)
    sources = {n: archive.read(n).decode() for n in archive.namelist() if re.match(r"vae_fast/.*\.py$", n)}
    assert not [n for n in sources if "bench" in n]
    naming = [
        n for n, text in sources.items() if re.search(r"vae_fast_benchmarks|\bbenchmarks\.|/benchmarks", text)
    ]
    assert naming == ["vae_fast/cli/app.py"]
    for name, text in sources.items():
        for up in re.finditer(r"__file__\)(\.resolve\(\))?((?:\.parents?\b(?:\[\d+\])?)+)", text):
            levels = len(re.findall(r"\.parent\b", up[2])) + sum(
                int(n) + 1 for n in re.findall(r"\d+", up[2])
            )
            assert levels <= name.count("/"), f"{name}: {up[0]}"


def test_metadata_asks_for_torch_alone(wheel: Path) -> None:
    import vae_fast

    info = metadata.PathDistribution(zipfile.Path(wheel, next(_dist_info(wheel)))).metadata
    assert info["Name"].replace("-", "_") == "vae_fast"
    assert info["Version"] == vae_fast.__version__
    needed = [r for r in info.get_all("Requires-Dist") if "extra ==" not in r]
    assert [re.match(r"[\w-]+", r)[0] for r in needed] == ["torch"]  # type: ignore[index]


def _dist_info(wheel: Path) -> Iterator[str]:
    return (n.split("/")[0] + "/" for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in n)


USE = """
import json, torch, vae_fast
mu, logvar = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
z, kl = vae_fast.reparameterize_kl(mu, logvar)
nll = vae_fast.bernoulli_nll(z, torch.rand(4, 3))
(nll + kl).sum().backward()
assert mu.grad.isfinite().all() and logvar.grad.isfinite().all()
print(json.dumps({"file": vae_fast.__file__, "info": vae_fast.info()}))
"""


def test_works_with_torch_alone(installed: Path) -> None:
    absent = "import importlib.util as u; print([n for n in ('numpy', 'typer', 'pytest', 'jax') if u.find_spec(n)])"
    assert python(installed, absent).strip() == "[]"
    said = json.loads(python(installed, USE))
    assert str(installed.parent.parent) in said["file"]
    assert said["info"]["backends"]["cpu"]["available"], said["info"]
    assert said["info"]["used"]["cpu"] == "cpu"


def test_command_without_its_extra_says_what_to_install(installed: Path) -> None:
    done = subprocess.run(
        [installed.parent / "vae-fast", "train"], capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode != 0
    assert "vae_fast[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_runs_from_an_installed_copy(wheel: Path, tmp_path: Path) -> None:
    """Outside the checkout, and whatever the settings of the project that it is installed in."""
    requires = metadata.PathDistribution(zipfile.Path(wheel, next(_dist_info(wheel)))).metadata.get_all(
        "Requires-Dist"
    )
    train = [re.match(r"[\w-]+", r)[0] for r in requires if 'extra == "train"' in r]  # type: ignore[index]
    interpreter = environment(tmp_path / "venv", wheel, also=[*train, "pytest", "pytest-benchmark"])
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    bench = (interpreter.parent / "vae-fast", "bench")
    only = ("--only", "test_likelihood and laplace and bfloat16")
    said = run(*bench, "--quick", *only, cwd=tmp_path)
    assert "1 ran, and every provider was right" in said
    code = "from vae_fast_benchmarks import settings; print(settings.PACKAGE); print(settings.RECORDS)"
    package, records = run(interpreter, "-c", code, cwd=tmp_path).split()
    assert Path(package).is_relative_to(tmp_path / "venv")
    assert Path(records) == tmp_path / "benchmarks" / "results"


def test_an_editable_install_has_the_checkouts_benchmarks(unpacked: Path, tmp_path: Path) -> None:
    source = shutil.copytree(unpacked, tmp_path / "source")
    tools = ("setuptools", "pybind11")
    interpreter = environment(
        tmp_path / "venv", "--no-build-isolation", "--editable", source, also=tools, VAE_FAST_CPU="0"
    )
    said = python(interpreter, "from vae_fast_benchmarks import settings; print(settings.RECORDS)")
    assert Path(said.strip()) == source / "benchmarks" / "results"


def test_installs_without_a_compiler(wheel_without_compiler: Path, tmp_path: Path) -> None:
    said = json.loads(python(environment(tmp_path / "venv", wheel_without_compiler), USE))
    cpu = said["info"]["backends"]["cpu"]
    assert not cpu["available"]
    assert "compiler" in cpu["reason"] or "built" in cpu["reason"]
    assert said["info"]["used"]["cpu"] == "reference"


def test_import_prints_nothing(installed: Path) -> None:
    def printed(module: str) -> tuple[str, str]:
        done = subprocess.run(
            [installed, "-c", f"import {module}"], capture_output=True, text=True, timeout=HANG
        )
        assert done.returncode == 0
        return done.stdout, done.stderr

    assert printed("vae_fast") == printed("torch")


def test_import_touches_no_gpu(installed: Path) -> None:
    code = """
import torch
def refuse(*args, **kwargs):
    raise AssertionError("import vae_fast asked for a GPU")
for name in ("init", "_lazy_init", "is_available", "device_count", "current_device"):
    setattr(torch.cuda, name, refuse)
import vae_fast
"""
    python(installed, code)


def test_import_takes_no_time_beyond_torch(installed: Path) -> None:
    code = """
import time
start = time.process_time()
import torch
middle = time.process_time()
import vae_fast
print(middle - start, time.process_time() - middle)
"""
    runs = [[float(t) for t in python(installed, code).split()] for _ in range(4)]
    torch_alone, ours = (min(times) for times in zip(*runs, strict=True))
    assert ours < 0.1 * torch_alone, f"torch {torch_alone:.3f} s, vae_fast on top {ours:.3f} s"
