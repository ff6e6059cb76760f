"""What is built and installed, also where a symbolic link is a text file: on Windows, in a ZIP.

Builds are of the last commit. Type checkers come with the extra `dev`.
"""

import os
import pathlib
import re
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest

import jaxunpool

ROOT = pathlib.Path(__file__).parent.parent
USERS = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
MISTAKE = "jaxunpool.max_pool(1.0, 2, windows=3)"

if not (ROOT / ".git").exists():
    pytest.skip("needs a clone of the repository", allow_module_level=True)


def run(*command, cwd, expected=0):
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=USERS, capture_output=True, text=True, check=False
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
    assert (ROOT / "jaxunpool/kernels/xla/__init__.py").is_file()


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
    output = run(sys.executable, "-c", code, f"build_{what}", folder, cwd=clone)
    return folder / output.splitlines()[-1]


def contents(wheel):
    """(name, bytes) of what a wheel installs, but for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if ".dist-info/" not in name)
        return [(name, archive.read(name)) for name in names]


@pytest.mark.parametrize("links", ["true", "false"])
def test_builds_hold_the_package_once(tmp_path, links):
    clone = cloned(tmp_path / "clone", links)
    package = [(name, (clone / name).read_bytes()) for name in tracked(clone, "jaxunpool")]

    assert contents(build(clone, tmp_path / "wheel", "wheel")) == package

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
    assert "kernels" not in names


@pytest.fixture(scope="module", params=["", "-e"])
def environment(request, unlinked, tmp_path_factory):
    """A Python, jaxunpool in it from a clone without links, and the folder that holds it."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    # What jaxunpool depends on; .pth files in there, of editable installations, are not followed.
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    python = folder / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q"]
    install += ["--no-deps", "--no-build-isolation", "--ignore-installed"]
    run(*install, *request.param.split(), ".", cwd=unlinked)
    return python, unlinked if request.param else site


def test_installed_package_runs(environment, tmp_path):
    python, holder = environment
    code = """
import jax.numpy as jnp, jaxunpool, jaxunpool.kernels.xla
print(jaxunpool.kernels.xla.__file__)
print(jaxunpool.max_pool(jnp.arange(4.0)[:, None], (2,))[:, 0])
"""
    file, pooled = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert pathlib.Path(file) == holder / "jaxunpool/kernels/xla/__init__.py"
    assert pooled == "[1. 3.]"


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
