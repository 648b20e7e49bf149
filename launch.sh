#!/usr/bin/env bash
# Starts the main job here or on a Slurm cluster, and again where it was interrupted (exit code 75).
set -uo pipefail

python=${PYTHON:-python}

usage() {
    cat <<'END'
usage: launch.sh local [ARGUMENTS of python -m tlx.main]
       launch.sh slurm [--nodes 1] [--gpus N] [--time TIME] [--partition NAME] [--dry-run] -- ARGUMENTS

local  runs here. With TLX_RESTARTS=N in the environment an interrupted run (exit code 75) is started
       again up to N times, unless it was this script that was told to stop.
slurm  submits a job of one node that saves two minutes before its time limit and requeues itself.
       --dry-run prints the job script. --gpus N uses N of the node's GPUs (default 1; 0: none).

PYTHON in the environment names the interpreter (default: python).
END
}

die() {
    echo "launch.sh: $1" >&2
    exit 2
}

# run_once ARGUMENTS: sets `code` to the exit code, and `stopped` when a signal came to this script.
run_once() {
    local signalled status
    # In a process group of its own the run gets each signal once, from here.
    set -m
    "$python" -m tlx.main "$@" &
    child=$!
    set +m
    trap 'signalled=1 stopped=1; kill -INT "$child" 2>/dev/null' INT
    trap 'signalled=1 stopped=1; kill -TERM "$child" 2>/dev/null' TERM
    code=1
    while :; do
        signalled=0
        wait "$child"
        status=$?
        ((status == 127)) || code=$status
        ((signalled)) || return 0
    done
}

run_local() {
    local restarts=${TLX_RESTARTS:-0}
    [[ $restarts =~ ^[0-9]+$ ]] || die "TLX_RESTARTS is '$restarts', expected a number"
    ((restarts)) || exec "$python" -m tlx.main "$@"
    stopped=0
    while :; do
        run_once "$@"
        ((code == 75 && restarts > 0 && !stopped)) || exit "$code"
        restarts=$((restarts - 1))
        echo "launch.sh: interrupted, starting again ($restarts restarts left)" >&2
    done
}

# job_script ARGUMENTS: prints the script that sbatch gets.
job_script() {
    echo '#!/usr/bin/env bash'
    echo '#SBATCH --job-name=tlx'
    echo '#SBATCH --nodes=1'
    echo '#SBATCH --ntasks-per-node=1'
    ((gpus == 0)) || echo "#SBATCH --gpus-per-node=$gpus"
    [[ -z $time ]] || echo "#SBATCH --time=$time"
    [[ -z $partition ]] || echo "#SBATCH --partition=$partition"
    cat <<'END'
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120

END
    printf 'srun %q -m tlx.main' "$python"
    printf ' %q' "$@"
    cat <<'END'
 &
child=$!
trap 'signalled=1; kill -TERM "$child"' TERM
code=1
while :; do
    signalled=0
    wait "$child"
    status=$?
    [ "$status" -eq 127 ] || code=$status
    [ "$signalled" -eq 1 ] || break
done
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
END
}

run_slurm() {
    local dry_run=0
    nodes=1 gpus=1 time="" partition=""
    while (($#)); do
        case $1 in
            --nodes | --gpus | --time | --partition)
                (($# > 1)) || die "$1 needs a value"
                printf -v "${1#--}" %s "$2"
                shift 2
                ;;
            --dry-run)
                dry_run=1
                shift
                ;;
            --)
                shift
                break
                ;;
            *) die "unknown option '$1' (the run's own arguments come after --)" ;;
        esac
    done
    # Without a process group across nodes each node would train alone in the same workdir.
    [[ $nodes == 1 ]] || die "--nodes is '$nodes', but a run is one process on one node so far"
    [[ $gpus =~ ^[0-9]+$ ]] || die "--gpus is '$gpus', expected a number"
    [[ -z $time || $time =~ ^[0-9:-]+$ ]] || die "--time is '$time', expected as 12:00:00"
    [[ -z $partition || $partition =~ ^[A-Za-z0-9_.,-]+$ ]] || die "'$partition' is no partition"
    (($#)) || die "no arguments after --, as -- --config=configs/cifar.py --workdir=runs/cifar"
    if ((dry_run)); then
        job_script "$@"
    else
        command -v sbatch >/dev/null || die "no sbatch here: run it on a Slurm login node, or --dry-run"
        job_script "$@" | sbatch
    fi
}

where=${1:-}
shift || true
case $where in
    local) run_local "$@" ;;
    slurm) run_slurm "$@" ;;
    -h | --help) usage ;;
    *)
        usage >&2
        exit 2
        ;;
esac
