"""What is built and installed, also where a symbolic link is a text file: on Windows, in a ZIP.

Builds are of the last commit. Type checkers come with the extra `dev`. The kernels for CPU are
compiled without optimizations, and not at all where there is no compiler.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

import jaxunpool

ROOT = pathlib.Path(__file__).parent.parent
USERS = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
NO_COMPILER = {"CC": "false", "CXX": "false"}
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
CPP = (".cc", ".h", ".inc")
MISTAKE = "jaxunpool.max_pool(1.0, 2, windows=3)"
MISTAKES = """
import jax
import jax.numpy as jnp

import jaxunpool as jup
import jaxunpool.linen
import jaxunpool.nnx

x = jnp.zeros((1, 8, 8, 3))
y, indices = jup.max_pool_with_indices(x, 2, padding="same", data_format="channels_last")
u: jax.Array = jaxunpool.nnx.MaxUnpool(duplicates="sum")(y, indices)
z: jax.Array = jaxunpool.linen.MaxPool((2, 2), padding=[(1, 1), (0, 0)])(x)
jup.max_pool(x, kernel_size=2)  # wrong
jup.max_pool(x, 2, padding="FULL")  # wrong
jup.max_unpool(y, indices, duplicates="first")  # wrong
jup.interpolate(x, 2, mode="bilinear")  # wrong
jaxunpool.nnx.MaxPool(2, stride=2)  # wrong
jaxunpool.nnx.MaxPool("2")  # wrong
jaxunpool.linen.AvgUnpool(2, mode="avg")  # wrong
jaxunpool.linen.MaxPool(2, data_format="NCHW")  # wrong
"""

if not (ROOT / ".git").exists():
    pytest.skip("needs a clone of the repository", allow_module_level=True)


def run(*command, cwd, expected=0, **variables):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=USERS | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def tracked(clone, folder="."):
    return sorted(run("git", "ls-files", folder, cwd=clone).splitlines())


def cloned(folder, links):
    run("git", "-c", f"core.symlinks={links}", "clone", "-q", ROOT, folder, cwd=ROOT)
    assert (folder / "kernels").is_symlink() == (links == "true")
    return folder


@pytest.fixture(scope="module")
def unlinked(tmp_path_factory):
    return cloned(tmp_path_factory.mktemp("clone") / "unlinked", "false")


def test_kernels_are_in_the_package():
    """The one link is relative and for readers at the top level; the folder is no link."""
    staged = run("git", "ls-files", "--stage", cwd=ROOT).splitlines()
    assert [line.split("\t")[1] for line in staged if line.startswith("120000")] == ["kernels"]
    assert run("git", "cat-file", "blob", ":kernels", cwd=ROOT) == "jaxunpool/kernels"
    assert run("git", "ls-files", "jaxunpool/kernels/xla/__init__.py", cwd=ROOT)


def test_zip_is_a_clone_without_links(unlinked, tmp_path):
    run("git", "archive", f"--output={tmp_path}/HEAD.zip", "HEAD", cwd=unlinked)
    with zipfile.ZipFile(tmp_path / "HEAD.zip") as archive:
        archive.extractall(tmp_path / "folder")  # links as text
    paths = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    held = {str(path.relative_to(tmp_path / "folder")): path.read_bytes() for path in paths}
    assert held == {name: (unlinked / name).read_bytes() for name in tracked(unlinked)}


def test_pages_lead_around_the_link(unlinked):
    found = 0
    for page in unlinked.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                found += 1
                assert (unlinked / target).exists(), (page.name, target)
    assert found > 10


def build(clone, folder, what):
    """What pip asks the build backend for, here without an index and an environment of its own."""
    code = "import sys, setuptools.build_meta as m; print(getattr(m, sys.argv[1])(sys.argv[2]))"
    folder.mkdir()
    output = run(sys.executable, "-c", code, f"build_{what}", folder, cwd=clone, **NO_COMPILER)
    return folder / output.splitlines()[-1]


def contents(wheel):
    """(name, bytes) of what a wheel installs, but for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if ".dist-info/" not in name)
        return [(name, archive.read(name)) for name in names]


@pytest.mark.thorough
@pytest.mark.parametrize("links", ["true", "false"])
def test_builds_hold_the_package_once(tmp_path, links):
    clone = cloned(tmp_path / "clone", links)
    package = [(name, (clone / name).read_bytes()) for name in tracked(clone, "jaxunpool")]

    wheel = build(clone, tmp_path / "wheel", "wheel")
    assert "-cp311-abi3-" in wheel.name  # one for each platform
    assert contents(wheel) == [item for item in package if not item[0].endswith(CPP)]

    # -e installs a path and no code: type checkers follow it.
    ((name, path),) = contents(build(clone, tmp_path / "editable", "editable"))
    assert name.endswith(".pth")
    assert path.decode().splitlines() == [str(clone)]

    with tarfile.open(build(clone, tmp_path / "sdist", "sdist")) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
    assert all(member.isfile() for member in members)  # nor links
    names = sorted(member.name.partition("/")[2] for member in members)
    assert [name for name in names if "kernels/" in name or name.startswith("jaxunpool/")] == [
        name for name, _ in package
    ]
    assert "setup.py" in names
    assert "kernels" not in names


def installed(clone, folder, option, **variables):
    """A Python with jaxunpool in it from a clone, and the folder that holds it."""
    pytest.importorskip("pip")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # What jaxunpool depends on; .pth files in there, of editable installations, are not followed.
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    python = folder / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    install += ["--no-deps", "--no-build-isolation", "--ignore-installed"]
    run(*install, *option.split(), ".", cwd=clone, **variables)
    return python, clone if option else site


@pytest.fixture(scope="module", params=["", "-e"])
def environment(request, unlinked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("environment")
    variables = NO_COMPILER
    if COMPILER:
        quick = folder / "quick"
        quick.write_text(f'#!/bin/sh\nexec "{COMPILER}" "$@" -O0\n')
        quick.chmod(0o755)
        variables = {"CC": str(quick), "CXX": str(quick)}
    return installed(unlinked, folder, request.param, **variables)


USE = """
import jax, jax.numpy as jnp, jaxunpool, jaxunpool.kernels.xla
pool = lambda x: jaxunpool.max_pool(x, (2,))
x = jnp.arange(4.0)[:, None]
print(jaxunpool.kernels.xla.__file__)
print(jax.jit(pool)(x)[:, 0])
print(jaxunpool.explain(pool, x, platform="cpu").calls[0].implementation)
print(jaxunpool.backends().found[1].reason)
"""


@pytest.mark.thorough
def test_installed_package_runs(environment, tmp_path):
    python, holder = environment
    file, pooled, implementation, _ = run(python, "-c", USE, cwd=tmp_path).splitlines()
    assert pathlib.Path(file) == holder / "jaxunpool/kernels/xla/__init__.py"
    assert pooled == "[1. 3.]"
    assert implementation == ("native_cpu" if COMPILER else "xla")
    kernels = [path.name for path in (holder / "jaxunpool/kernels/native_cpu").iterdir()]
    assert kernels.count("_native.abi3.so") == bool(COMPILER)


@pytest.mark.thorough
@pytest.mark.parametrize("option", ["", "-e"])
def test_installation_without_a_compiler(option, tmp_path):
    """Succeeds; `xla` runs, and what brings the kernels is said."""
    clone = cloned(tmp_path / "clone", "true")
    python, _ = installed(clone, tmp_path / "environment", option, **NO_COMPILER)
    _, pooled, implementation, reason = run(python, "-c", USE, cwd=tmp_path).splitlines()
    assert (pooled, implementation) == ("[1. 3.]", "xla")
    assert "not compiled when jaxunpool was installed" in reason
    command = re.search("`(.*)`", reason)[1]
    assert command.startswith(f"{python} -m pip install ")
    assert command.endswith(f"-e {clone}" if option else f" {clone.as_uri()}")


def users_code(clone):
    """Imports every module, reveals the type of every public name, and makes one mistake."""
    paths = map(pathlib.PurePath, tracked(clone, "jaxunpool/*.py"))
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    imports = [f"import {module} as module_{i}" for i, module in enumerate(modules)]
    revealed = [f"reveal_type(jaxunpool.{name})" for name in jaxunpool.__all__]
    return "\n".join(["import jaxunpool", *imports, *revealed, MISTAKE, ""])


@pytest.fixture(scope="module")
def checkers(tmp_path_factory):
    """The command of each type checker before the path of a Python; JAX's types are kept."""
    kept = tmp_path_factory.mktemp("mypy")
    return {
        "mypy": ["mypy", "--cache-dir", kept, "--python-executable"],
        "pyright": ["pyright", "--pythonpath"],
    }


@pytest.mark.thorough
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_see_it(checker, checkers, environment, unlinked, tmp_path):
    """In a file that is not in the clone, as an editor shows it."""
    pytest.importorskip(checker)
    (tmp_path / "user.py").write_text(users_code(unlinked))
    command = [sys.executable, "-m", *checkers[checker], environment[0], "user.py"]
    output = run(*command, cwd=tmp_path, expected=1)

    (error,) = [line for line in output.splitlines() if "error:" in line]
    assert '"windows"' in error
    types = re.findall(r' is "(.*)"$', output, re.MULTILINE)
    types = dict(zip(jaxunpool.__all__, types, strict=True))
    assert not {"Any", "Unknown"} & set(types.values())
    assert re.search(r"window_shape: .* -> .*Array$", types["max_pool"])


@pytest.mark.thorough
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_type_checkers_find_mistakes(checker, checkers, environment, tmp_path):
    """Of functions and of modules: those that are marked, and no others."""
    pytest.importorskip(checker)
    (tmp_path / "user.py").write_text(MISTAKES)
    command = [sys.executable, "-m", *checkers[checker], environment[0], "user.py"]
    output = run(*command, cwd=tmp_path, expected=1)
    found = {int(line) for line in re.findall(r"user\.py:(\d+):.*error:", output)}
    lines = enumerate(MISTAKES.splitlines(), 1)
    assert found == {number for number, line in lines if line.endswith("# wrong")}


COMPLETED = {
    "jup.max_pool(x, window_": "window_shape=",
    "jaxunpool.nnx.MaxPool(window_": "window_shape=",
    "jaxunpool.linen.MaxPool(window_": "window_shape=",
    "jaxunpool.nnx.MaxPool(2)(": "x=",
    "jup.max_unpool_l": "max_unpool_like",
}


@pytest.mark.thorough
def test_editors_complete_arguments(environment, tmp_path):
    """As jedi does, in editors and in notebooks."""
    jedi = pytest.importorskip("jedi")
    jedi.settings.cache_directory = tmp_path
    project = jedi.Project(tmp_path, environment_path=environment[0])
    imports = "import jaxunpool as jup, jaxunpool.linen, jaxunpool.nnx\nx = 1\n"
    for code, completed in COMPLETED.items():
        script = jedi.Script(imports + code, path=tmp_path / "user.py", project=project)
        assert completed in [each.name for each in script.complete()], code
    (signature,) = jedi.Script(imports + "jup.max_pool(", project=project).get_signatures()
    assert [each.name for each in signature.params][:3] == ["x", "window_shape", "strides"]
