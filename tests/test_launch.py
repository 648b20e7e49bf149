"""launch.sh as a process: what it starts, what it prints, and when it starts again."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch.sh"


def launch(*arguments, **environment):
    # The caller's own settings must not decide whether this test passes.
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "TLX_RESTARTS")}
    return subprocess.run(
        [LAUNCH, *arguments],
        env=inherited | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def stub(tmp_path, body):
    """Returns a program that stands in for python and is called with `-m tlx.main ...`."""
    path = tmp_path / "python"
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return str(path)


def count_calls(tmp_path, code):
    log = tmp_path / "calls"
    return stub(tmp_path, f'echo "$*" >> {log}\nexit {code}'), log


def test_local_runs_main():
    result = launch("local", "--help")
    assert result.returncode == 0, result.stderr
    assert "--config=FILE" in result.stdout


@pytest.mark.parametrize("restarts", ["", "3"])
def test_local_passes_on_arguments_and_exit_code(tmp_path, restarts):
    python, log = count_calls(tmp_path, 2)
    result = launch("local", "--config.x=a b", "*", PYTHON=python, TLX_RESTARTS=restarts)
    assert result.returncode == 2
    assert log.read_text() == "-m tlx.main --config.x=a b *\n"


@pytest.mark.parametrize(("restarts", "calls"), [("0", 1), ("2", 3)])
def test_an_interrupted_run_is_started_again_up_to_the_limit(tmp_path, restarts, calls):
    python, log = count_calls(tmp_path, 75)
    result = launch("local", PYTHON=python, TLX_RESTARTS=restarts)
    assert result.returncode == 75
    assert log.read_text().count("\n") == calls


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_run_and_stops_the_restarts(tmp_path, number):
    log = tmp_path / "log"
    script = tmp_path / "run.py"
    script.write_text(
        "import signal, sys\n"
        "def stop(number, frame):\n"
        f"    open({str(log)!r}, 'a').write(f'{{number}} ')\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    signal.pause()\n"
    )
    python = stub(tmp_path, f"exec {sys.executable} {script}")
    environment = os.environ | {"PYTHON": python, "TLX_RESTARTS": "5"}
    # Where the tests themselves run in the background SIGINT is ignored, and a shell cannot undo that.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        [LAUNCH, "local"], env=environment, stdout=subprocess.PIPE, preexec_fn=heard
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.wait(timeout=60) == 75
        finally:
            process.kill()
    assert log.read_text() == f"{int(number)} "


def test_the_slurm_script(tmp_path):
    options = ("--nodes", "1", "--gpus", "4", "--time", "12:00:00", "--partition", "long")
    result = launch("slurm", *options, "--dry-run", "--", "--config.x=a b", PYTHON="python3")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert {
        "#SBATCH --nodes=1",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=12:00:00",
        "#SBATCH --partition=long",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@120",
        r"srun python3 -m tlx.main --config.x=a\ b &",
    } <= set(lines)
    assert (
        subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=False).returncode == 0
    )


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (0, False), (1, False)])
def test_a_slurm_job_requeues_itself_only_when_interrupted(tmp_path, code, requeued):
    script = launch("slurm", "--dry-run", "--", "--config=c.py").stdout
    for name, body in (("srun", f"exit {code}"), ("scontrol", f'echo "$*" > {tmp_path}/requeued')):
        stub(tmp_path, body)
        (tmp_path / "python").rename(tmp_path / name)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.run(["bash"], input=script, text=True, env=environment, check=False)
    assert job.returncode == code
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage"),
        (("elsewhere",), "usage"),
        (("slurm",), "no arguments after --"),
        (("slurm", "--gpu", "1", "--", "x"), "unknown option '--gpu'"),
        (("slurm", "--gpus", "many", "--", "x"), "--gpus is 'many'"),
        (("slurm", "--gpus"), "--gpus needs a value"),
        (("slurm", "--nodes", "2", "--", "x"), "one node"),
        (("slurm", "--time", "1;rm", "--", "x"), "--time is '1;rm'"),
    ],
)
def test_wrong_arguments_are_one_line_and_code_2(arguments, message):
    result = launch(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_wrong_number_of_restarts_starts_nothing(tmp_path):
    python, log = count_calls(tmp_path, 0)
    result = launch("local", PYTHON=python, TLX_RESTARTS="often")
    assert result.returncode == 2
    assert not log.exists()
