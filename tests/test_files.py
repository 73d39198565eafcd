"""Files that are there whole or not at all, and folders that one process holds."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ironclip.errors import ConfigError
from ironclip.files import hold_folder, write_atomically
from ironclip.models._weights import write_tensors


def test_a_folder_is_held_by_one_and_then_free(tmp_path):
    folder = tmp_path / "runs" / "one"
    with hold_folder(folder):
        with pytest.raises(ConfigError, match=r"another process is writing into .*one\.\n.*--out"), hold_folder(folder):
            pass
        (folder / "run.json").write_text("{}")
    with hold_folder(folder):
        assert [path.name for path in folder.iterdir()] == ["run.json"]  # no file of ours


def test_a_killed_process_holds_nothing(tmp_path):
    code = f"""
import pathlib, time
from ironclip.files import hold_folder
with hold_folder(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process"), hold_folder(tmp_path):
            pass
        other.kill()
    time.sleep(0.01)
    with hold_folder(tmp_path):
        pass


def test_a_request_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), hold_folder(tmp_path / "a" / "b"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ConfigError, match="notes is a file, not a run folder"), hold_folder(tmp_path / "notes"):
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with hold_folder(tmp_path):
        assert "cannot be locked" in caplog.text


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a.json", b"old")

    def full(self, content):
        self.open("wb").close()
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_cannot_be_written_are_an_error_of_the_machine(tmp_path):
    with pytest.raises(OSError, match=r"a\.safetensors cannot be written"):
        write_tensors({"w": torch.zeros(2)}, tmp_path / "nowhere" / "a.safetensors")
