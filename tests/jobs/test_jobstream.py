"""The frames of a job's log: whole in whatever pieces they come, and files that stay in place."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hotcold.actors.jobs import jobstream
from hotcold.actors.jobs.jobstream import BEGIN, ERROR, EXIT, FILE, Splitter, frame


def split(text: str, cuts: list[int]) -> list[tuple[str, str]]:
    splitter, found = Splitter(), list[tuple[str, str]]()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        for kind, part in splitter.feed(text[start:end]):
            if found and found[-1][0] == kind == "":
                found[-1] = ("", found[-1][1] + part)
            else:
                found.append((kind, part))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_pieces_do_not_matter(seed: int) -> None:
    text = "Ray says\n" + frame(BEGIN) + "plain \x1e? out\n" + frame(ERROR, "a\nb") + "more"
    text += frame(FILE, "QUJD\n") + frame(EXIT, "2\n")
    draw = np.random.default_rng(seed)
    cuts = sorted(draw.integers(0, len(text), size=seed).tolist())
    assert split(text, cuts) == [
        ("", "Ray says\n"),
        (BEGIN, ""),
        ("", "plain \x1e? out\n"),
        (ERROR, "a\nb"),
        ("", "more"),
        (FILE, "QUJD\n"),
        (EXIT, "2\n"),
    ]


def test_text_cannot_forge_a_frame() -> None:
    assert list(Splitter().feed(frame(ERROR, frame(EXIT, "0")))) == [(ERROR, "?X0?")]


def sent(paths: list[Path]) -> list[str]:
    frames = "".join(jobstream.file_frames(jobstream.pack_files(paths)))
    return [text for kind, text in Splitter().feed(frames) if kind == FILE]


def test_files_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = np.random.default_rng(0).bytes(50_000)
    Path("out/deep").mkdir(parents=True)
    Path("out/deep/a.npz").write_bytes(content)
    Path("out/b.txt").write_text("b")
    parts = sent([Path("out")])
    assert len(parts) > 5
    here = tmp_path / "here"
    written = jobstream.unpack_files(parts, here, ["out"])
    assert (here / "out/deep/a.npz").read_bytes() == content
    assert sorted(path.name for path in written) == ["a.npz", "b.txt"]
    with pytest.raises(ValueError, match="'out/b.txt' that was not asked for"):
        jobstream.unpack_files(parts, here, ["outer"])
    with pytest.raises(ValueError, match="damaged"):
        jobstream.unpack_files(parts[:2], here, ["out"])


@pytest.mark.parametrize("name", ["../evil", "/evil", "out/../../evil"])
def test_files_stay_below_the_folder(tmp_path: Path, name: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "x")
    frames = "".join(jobstream.file_frames(content.getvalue()))
    parts = [text for _, text in Splitter().feed(frames)]
    with pytest.raises(ValueError, match="not asked for"):
        jobstream.unpack_files(parts, tmp_path / "here", ["out", "..", "/"])
    assert not (tmp_path / "evil").exists()


def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobstream, "FETCH_LIMIT", 1000)
    (tmp_path / "big").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(ValueError, match="too much to send back"):
        jobstream.pack_files([tmp_path / "big"])
