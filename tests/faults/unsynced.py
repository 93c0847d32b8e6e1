"""What a power failure may leave of a list of changes: a model of a disk, independent of what writes it.

Of a file only what was synced is sure; of a folder, the entries that were made, renamed or removed before the
folder itself was synced. Everything later may be there or not. A rename happens as a whole or not at all.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tests.faults.disk import REMOVING, Change

Tree = dict[str, bytes | None]  # of paths below the folder that is watched; None is a folder
ENTRIES = ("create", "mkdir", "rename", *REMOVING)


@dataclass
class _File:
    data: bytes = b""
    synced: bytes = b""


Node = _File | None
Choice = Callable[[Change], bool]  # of a change to entries that nothing made durable: whether it is there
Content = Callable[[_File], bytes]


def crashes(before: Tree, changes: Sequence[Change], n_draws: int = 2) -> Iterator[tuple[str, Tree]]:
    """What may lie there after these changes and no more: by name, and all paths."""
    live = _Disk(before)
    for change in changes:
        live.apply(change)
    draws = random.Random(len(changes))
    removing: Choice = lambda change: change.kind in REMOVING  # noqa: E731
    variants: dict[str, tuple[Choice, Content]] = {
        "all of it": (lambda change: True, lambda file: file.data),
        "only what was synced": (lambda change: False, lambda file: file.synced),
        "renames undone": (lambda change: False, lambda file: file.data),
        "data absent": (lambda change: True, lambda file: file.synced),
        "data cut short": (lambda change: True, _cut_short),
        "data zeroed": (lambda change: True, _zeroed),
        "removals alone": (removing, lambda file: file.data),
        "all but removals": (lambda change: not removing(change), _zeroed),
    }
    for i in range(n_draws):
        variants[f"draw {i}"] = (
            lambda change: draws.random() < 0.5,
            lambda file: draws.choice(CONTENTS)(file),
        )
    for name, (keeps, content) in variants.items():
        yield name, live.crashed(keeps, content)


def _cut_short(file: _File) -> bytes:
    return file.data[: (len(file.synced) + len(file.data) + 1) // 2]


def _zeroed(file: _File) -> bytes:
    same = file.synced if file.data.startswith(file.synced) else b""
    return same + bytes(len(file.data) - len(same))


CONTENTS: tuple[Content, ...] = (_cut_short, _zeroed, lambda file: file.data, lambda file: file.synced)


class _Disk:
    """Folders and files by path, and which changes of entries are durable."""

    def __init__(self, before: Tree):
        self.before: dict[str, Node] = {
            path: None if data is None else _File(data, data) for path, data in before.items()
        }
        self.entries = dict(self.before)
        self.changes: list[tuple[Change, Node, list[bool]]] = []  # durable or not

    def apply(self, change: Change) -> None:
        """A change that the system would refuse is none."""
        if change.kind == "fsync":
            node = self.entries.get(change.path, self)
            if isinstance(node, _File):
                node.synced = node.data
            elif node is None:
                for done, _, durable in self.changes:
                    durable[0] = durable[0] or _folder(done.to or done.path) == change.path
                gone = [
                    done.path + "/"
                    for done, _, durable in self.changes
                    if done.kind == "rmdir" and durable[0]
                ]
                for done, _, durable in self.changes:  # a folder that is gone takes what was in it along
                    durable[0] = durable[0] or done.path.startswith(tuple(gone))
        elif change.kind == "write":
            node = self.entries[change.path]
            assert isinstance(node, _File)
            end = change.offset + len(change.data)
            node.data = node.data[: change.offset] + change.data + node.data[end:]
        else:
            assert change.kind in ENTRIES, change.kind
            there = self.entries.get(change.path)
            if change.kind == "create" and change.path in self.entries:
                assert isinstance(there, _File)
                if change.cut:
                    there.data = b""
                return
            node = _File() if change.kind == "create" else None
            if _changed(self.entries, change, node):
                self.changes.append((change, node, [False]))

    def crashed(self, keeps: Choice, content: Content) -> Tree:
        """What lies there when the power is back."""
        entries = dict(self.before)
        for change, node, durable in self.changes:
            if durable[0] or keeps(change):
                _changed(entries, change, node)
        return {path: None if node is None else content(node) for path, node in entries.items()}


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _changed(entries: dict[str, Node], change: Change, node: Node) -> bool:
    """Change the entries, if that can be done; whether it was."""
    path, below = change.path, change.path + "/"
    if change.kind in ("create", "mkdir"):
        if path in entries or entries.get(_folder(path), path) is not None:
            return False
        entries[path] = node
    elif path not in entries:
        return False
    elif change.kind == "rename":
        to = change.to
        if entries.get(_folder(to), to) is not None or any(p.startswith(to + "/") for p in entries):
            return False
        moved = {p: n for p, n in entries.items() if p == path or p.startswith(below)}
        for old in moved:
            del entries[old]
        for old, held in moved.items():
            entries[to + old[len(path) :]] = held
    elif change.kind == "rmdir" and any(p.startswith(below) for p in entries):
        return False
    else:
        del entries[path]
    return True


def read_tree(folder: Path) -> Tree:
    """A folder as it lies there, with the folder itself."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): None if path.is_dir() else path.read_bytes() for path in paths}


def write_tree(tree: Tree, root: Path, folder: Path) -> None:
    """Make `folder` what the tree says of `root`."""
    for path, data in sorted(tree.items()):
        there = folder / PurePosixPath(path).relative_to(str(root))
        if data is None:
            there.mkdir(parents=True, exist_ok=True)
        else:
            there.write_bytes(data)
