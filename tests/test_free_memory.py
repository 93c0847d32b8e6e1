"""What memory is free: by every group that a process is in, without the files that are only remembered."""

import sys

import pytest
import torch

from tformer import free_memory
from tformer.free_memory import _left_to_groups, free_bytes

GB = 10**9


def group(folder, most: object, used: int, remembered: int, names: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{most}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {remembered}\nactive_file 7\n")


NEW = "memory.max", "memory.current", "inactive_file"
OLD = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


@pytest.mark.parametrize(("names", "line", "top"), [(NEW, "0::", "."), (OLD, "4:cpu,memory:", "memory")])
def test_the_nearest_limit_counts_wherever_it_is(names, line, top, tmp_path):
    root, membership = tmp_path / "fs", tmp_path / "membership"
    membership.write_text(f"1:name=systemd:/x\n{line}/jobs/7\n")
    group(root / top / "jobs" / "7", "max" if names == NEW else 2**63 - 4096, GB, 0, names)
    group(root / top / "jobs", 4 * GB, 3 * GB, 2 * GB, names)
    assert min(_left_to_groups(root, membership)) == 3 * GB
    group(root / top, 2 * GB, GB, 0, names)
    assert min(_left_to_groups(root, membership)) == GB


def test_a_path_of_the_host_is_not_there_and_the_container_has_its_own_limit(tmp_path):
    (tmp_path / "membership").write_text("0::/docker/abc\n")
    group(tmp_path / "fs", 2 * GB, GB, GB // 2, NEW)
    assert _left_to_groups(tmp_path / "fs", tmp_path / "membership") == [3 * GB // 2]


def test_where_nobody_says_nothing_is_known(tmp_path):
    assert _left_to_groups(tmp_path / "fs", tmp_path / "membership") == []
    (tmp_path / "membership").write_text("0::/\nstrange\n")
    assert _left_to_groups(tmp_path / "fs", tmp_path / "membership") == []


def test_processes_of_a_machine_share_what_it_has_and_each_has_its_own_limit(monkeypatch):
    monkeypatch.setattr(
        free_memory, "_field", lambda path, name, unit=1024: 9000 if "meminfo" in path else 100
    )
    monkeypatch.setattr(free_memory, "_left_to_groups", lambda root, membership: [8000])
    monkeypatch.setattr("resource.getrlimit", lambda which: (3100, 3100))
    found = [free_bytes(torch.device("cpu"), n) for n in (1, 2, 4)]
    assert found == ([3000, 3000, 2000] if sys.platform.startswith("linux") else [None] * 3)
