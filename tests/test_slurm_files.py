"""The files for Slurm, run with stand-ins for its commands that write down how they were called."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from trl_prl.__main__ import load_command, parse_command


# Runs what stands behind the options on "the node", as srun does, once per task.
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do options+=("$1"); shift; done
echo "srun ${options[*]} :: $1" >> "$CALLS"
SLURM_PROCID=1 "$@"
"""
STAND_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "$CALLS"
"""
# A server that is not up when it is asked first.
CURL = """#!/bin/bash
[[ -e "$CALLS.up" ]] || { touch "$CALLS.up"; exit 22; }
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File of the calls that are made."""
    folder = tmp_path / "bin"
    folder.mkdir()
    nodes = "#!/bin/bash\nprintf 'n1\\nn2\\nn3\\nn4\\n'\n"
    texts = {"srun": SRUN, "scontrol": nodes, "curl": CURL}
    for name in ("srun", "scontrol", "trl", "trl-prl", "accelerate", "ray", "curl", "openssl"):
        (folder / name).write_text(texts.get(name, STAND_IN))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    # A shell function: what was started in the background has been called when the file goes on.
    monkeypatch.setenv("BASH_FUNC_sleep%%", "() { wait; }")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-4]")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def run(repo_root: Path, name: str, *words: str) -> None:
    subprocess.run(["bash", repo_root / "examples" / "slurm" / name, *words], check=True, timeout=60)


def test_training_on_four_nodes(repo_root: Path, calls: Path) -> None:
    run(repo_root, "train_pav.sbatch", "--learning_rate", "1e-6")
    lines = calls.read_text().splitlines()
    (launch,) = [line for line in lines if line.startswith("accelerate")]
    assert "--num_machines 2 --num_processes 16 --machine_rank 1 --main_process_ip n1" in launch
    assert "--process_reward http://n4:8001" in launch
    assert "--vllm_server_host n3" in launch
    assert launch.endswith("--learning_rate 1e-6")
    (sampler,) = [line for line in lines if line.startswith("trl vllm-serve")]
    assert sampler.endswith("--tensor_parallel_size 4")  # copies beside each other are refused for dense models
    assert "srun --nodes=2 --ntasks=2 --nodelist=n1,n2 :: bash" in lines
    (served,) = [line.removeprefix("trl-prl ") for line in lines if line.startswith("trl-prl")]
    name, *words = served.split()
    options = parse_command(load_command(name), name, words)
    assert (options.verifier, options.host, options.port) == ("Qwen/Qwen2.5-Math-PRM-7B", "0.0.0.0", 8001)


def test_collection_on_a_cluster_of_the_job(repo_root: Path, calls: Path) -> None:
    words = ["--model", "m", "--dataset", "d.jsonl", "--output_dir", "values"]
    run(repo_root, "collect_ray.sbatch", *words)
    lines = calls.read_text().splitlines()
    assert sum(line.startswith("ray start") for line in lines) == 2
    (collected,) = [line.removeprefix("trl-prl ") for line in lines if line.startswith("trl-prl")]
    name, *given = collected.split()
    options = parse_command(load_command(name), name, given)
    assert (options.engine, options.ray_address, options.num_workers) == ("ray", "n1:6379", 32)
    assert options.gpus_per_worker == 1
