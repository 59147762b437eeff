"""What lies in a file's place instead of its data: pointers, error pages, archives, broken links.

Asked only after a file could not be read as what its name says, by the readers of JSON and of
safetensors and by whoever lists a folder. Looks at the first bytes; believes none of them.
"""

import re
from pathlib import Path

HEAD_BYTES = 4096
_AGAIN = "download it again"
_LFS = re.compile(rb"version https://git-lfs[^\n]*\n(?:[^\n]*\n)*?size (\d{1,15})\s*\Z")
_LINK = re.compile(r"(?:\.\./)+[\w./-]+")
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "is a GGUF file; give the Hugging Face files of the same model instead"),
    (b"PK\x03\x04", "is a zip archive, as torch.save writes; use the file save_pretrained writes"),
    (b"\x80\x04", "is a pickle, as torch.save writes; use the file save_pretrained writes"),
    (b"\x80\x02", "is a pickle, as torch.save writes; use the file save_pretrained writes"),
    (b"\x89HDF", "is an HDF5 file, as TensorFlow writes; use the PyTorch files of the model"),
    (b"\x1f\x8b", "is compressed by gzip; unpack it with gunzip"),
    (b"BZh", "is compressed by bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ", "is compressed by xz; unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd; unpack it with unzstd"),
    (b"<<<<<<< ", "holds an unresolved merge conflict of git; take one side of it"),
)


def impostor(path: Path) -> str:
    """What a file is instead, as the rest of a sentence with the way out; "" where it is unknown.

    It could not be read; may be missing, a folder or a link to nothing.
    """
    try:
        if path.is_symlink() and not path.exists():
            return (
                f"is a link to {path.readlink()}, which does not exist: the folder was copied "
                f"without what it links to; copy it with `cp -rL`, or {_AGAIN}"
            )
        if path.is_dir():
            return "is a folder where a file is expected; restore the file"
        if not path.is_file():
            return ""
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (OSError, ValueError):
        return ""
    return _of_bytes(head, size)


def _of_bytes(head: bytes, size: int) -> str:
    if not size:
        return f"is empty, truncated by a download or copy that did not finish; {_AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        found = _LFS.match(head)
        stands = f", not the {int(found[1])} bytes it stands for" if found else ""
        return (
            f"is a Git LFS pointer{stands}; fetch the file with `git lfs pull` in its folder, or "
            "with `hf download`"
        )
    if head.startswith((b"/annex/objects/", b"../.git/annex/", b".git/annex/")):
        return "is a git-annex pointer, not the file; fetch it with `git annex get`"
    for magic, text in _MAGIC:
        if head.startswith(magic):
            return text
    if not head.strip(b"\0"):
        return f"begins with zeros: a download took the room and did not fill it; {_AGAIN}"
    return _of_text(head, size)


def _of_text(head: bytes, size: int) -> str:
    try:
        text = head.decode("utf-8").strip()
    except UnicodeDecodeError:
        return ""
    start = text[:200].lower()
    login = "with `hf download`, logged in where the model asks for it"
    if start.startswith(("<!doctype html", "<html")):
        title = re.search(r"<title>([^<]{1,80})", text, re.IGNORECASE)
        said = f" ({' '.join(title[1].split())!a})" if title else ""
        return f"is an HTML page{said}, not the file; {_AGAIN}, {login}"
    if start.startswith("<?xml"):
        return f"is an XML answer of a server, not the file; {_AGAIN}, {login}"
    if _LINK.fullmatch(text):
        return (
            f"holds the name of another file ({text[:80]!a}), as a link that was saved as text; "
            f"copy the folder with `cp -rL`, or {_AGAIN}"
        )
    is_error = text.startswith(('{"error"', '{"message"', '{"detail"'))
    if size == len(head) and text.isprintable() and (is_error or text[:1] not in "{["):
        return f"holds only the text {text[:100]!a}, a server's answer; {_AGAIN}, {login}"
    return ""
