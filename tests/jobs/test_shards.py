"""Shards: nothing lost, nothing doubled, whatever is cut off."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trl_prl.jobs.manifest import open_manifest
from trl_prl.jobs.shards import SHARDS, ShardWriter, find_units, read_units


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)


def read_all(folder: Path) -> dict[int, Any]:
    places = find_units(folder)
    return {unit: data["rows"] for unit, data in zip(places, read_units(places, places), strict=True)}


@given(st.dictionaries(st.integers(0, 10**6), json_values, max_size=4))
def test_round_trip(units: dict[int, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(Path(folder)) as writer:
            for unit, rows in units.items():
                writer.write(unit, {"rows": rows})
        assert read_all(Path(folder)) == units


@given(st.lists(json_values, min_size=1, max_size=4), st.data())
def test_cut_anywhere_then_resumed(rows: list[Any], data: st.DataObject) -> None:
    """Whatever byte the kill falls on, whole units stay, the cut one is computed again, none is doubled."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ShardWriter(folder) as writer:
            for unit, row in enumerate(rows):
                writer.write(unit, {"rows": row})
        (shard,) = (folder / SHARDS).iterdir()
        content = shard.read_bytes()
        kept = data.draw(st.integers(0, len(content)))
        shard.write_bytes(content[:kept])
        left = find_units(folder)
        assert set(left) == set(range(content[:kept].count(b"\n")))
        with ShardWriter(folder) as writer:
            for unit, row in enumerate(rows):
                if unit not in left:
                    writer.write(unit, {"rows": row})
        assert read_all(folder) == dict(enumerate(rows))
        assert shard.read_bytes() == content[:kept]


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_unit_is_left_out(position: int, change: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ShardWriter(folder) as writer:
            for unit in range(3):
                writer.write(unit, {"rows": f"unit {unit}"})
        (shard,) = (folder / SHARDS).iterdir()
        content = bytearray(shard.read_bytes())
        content[position % len(content)] ^= change
        shard.write_bytes(bytes(content))
        found = read_all(folder)
        assert all(rows == f"unit {unit}" for unit, rows in found.items())
        # A line break that is damaged joins two lines.
        assert len(found) >= 1


def test_a_restart_begins_a_new_file_and_two_processes_do_not_share_one(tmp_path: Path) -> None:
    """Output is not truncated on start."""
    for value in range(3):
        with ShardWriter(tmp_path, process_index=7) as one, ShardWriter(tmp_path, process_index=7) as other:
            one.write(2 * value, {"rows": value})
            other.write(2 * value + 1, {"rows": value})
    assert len(list((tmp_path / SHARDS).iterdir())) == 6
    assert read_all(tmp_path) == {unit: unit // 2 for unit in range(6)}


def test_a_unit_computed_twice_counts_once(tmp_path: Path) -> None:
    for process in (0, 1):
        with ShardWriter(tmp_path, process) as writer:
            writer.write(0, {"rows": "same"})
    assert read_all(tmp_path) == {0: "same"}


def test_a_writer_without_units_leaves_no_file(tmp_path: Path) -> None:
    with ShardWriter(tmp_path):
        pass
    assert find_units(tmp_path) == {}
    assert not (tmp_path / SHARDS).exists()


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(0, {"rows": "a\ud800b"})
    assert read_all(tmp_path) == {0: "a\ud800b"}


def test_manifest_refuses_another_job(tmp_path: Path) -> None:
    settings = {"seed": 1, "stop": ("a",)}
    assert open_manifest(tmp_path, settings) == {"seed": 1, "stop": ["a"]}
    with ShardWriter(tmp_path) as writer:
        writer.write(0, {"rows": 1})
    open_manifest(tmp_path, settings)
    with pytest.raises(ValueError, match="seed: 1 there, 2 now"):
        open_manifest(tmp_path, {**settings, "seed": 2})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_shards_without_a_manifest_are_not_touched(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.write(0, {"rows": 1})
    with pytest.raises(ValueError, match="no manifest"):
        open_manifest(tmp_path, {})


def test_a_job_begun_before_a_setting_existed_had_its_default(tmp_path: Path) -> None:
    open_manifest(tmp_path, {"n_mc": 4})
    with ShardWriter(tmp_path) as writer:
        writer.write(0, {"rows": 1})
    open_manifest(tmp_path, {"n_mc": 4, "n_branch": 0}, {"n_mc": 20, "n_branch": 0})
    with pytest.raises(ValueError, match="n_branch: 0 there, 2 now"):
        open_manifest(tmp_path, {"n_mc": 4, "n_branch": 2}, {"n_mc": 20, "n_branch": 0})
    with pytest.raises(ValueError, match="n_mc: 4 there, 20 now"):
        open_manifest(tmp_path, {"n_mc": 20, "n_branch": 0}, {"n_mc": 20, "n_branch": 0})
