"""python -m tlx.main --config=configs/digits.py [--workdir=DIR] [--mode=train|evaluate|predict|export|lr_find|soup] [--config.FIELD=VALUE ...]

Exit codes: 0 done; 2 the input is wrong (one line says what); 75 interrupted, the same command goes on; 1 a bug.
"""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlx import config as config_lib
from tlx.config import Config
from tlx.errors import InputError, InputFileNotFoundError
from tlx.evaluation.predictions import check_output
from tlx.memory import keep_freed_memory
from tlx.soups.config import soup_config
from tlx.workdir import Workdir, default_path

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 75

MODES = ("train", "evaluate", "predict", "export", "lr_find", "soup")
FLAGS = ("--config", "--workdir", "--mode", "--input", "--output")

HELP = f"""usage: python -m tlx.main --config=FILE [--workdir=DIR] [--mode={"|".join(MODES)}] [--config.FIELD=VALUE ...]

  --config=FILE         a Python file with get_config(), as configs/digits.py
  --config.FIELD=VALUE  overrides a field, as --config.train.epochs=3
  --workdir=DIR         where checkpoints, metrics and the report go; runs/<config>-<hash> if not given;
                        without --config, the run that is there
  --mode=MODE           train (the default; the same command again resumes); evaluate: the
                        checkpoint in the workdir, or the pretrained network as it is; predict: the same
                        on new inputs, without labels; export: the trained network as one file under its
                        source's names, to WORKDIR/export;
                        lr_find: the learning-rate range test, to WORKDIR/lr_find.png; soup: the mean of
                        the finished runs that --config.soup.runs names, with their config, to WORKDIR
  --input=FILE          mode=predict: a .txt with a text on each line, a .csv, .tsv or .jsonl of texts or of
                        paths of pictures, a .conll of words to be tagged, a picture or a folder of them;
                        - is lines of the standard input
  --output=FILE         mode=predict: a .jsonl or .csv; WORKDIR/predictions.jsonl if not given
  --fields              lists the config's fields and their defaults
"""


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the flags, and the overrides of config fields.

    Raises:
      InputError: an unknown flag, a missing value, or a word that is no flag.
    """
    flags: dict[str, str] = {}
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = "--" + name.lstrip("-") if name.startswith("-") else name
        if name in ("--help", "--h", "--fields"):
            flags[name] = "1"
            continue
        if name not in FLAGS and not name.startswith("--config."):
            hint = config_lib.nearest(name, (*FLAGS, "--help"))
            raise InputError(f"unknown argument {word!r}{hint} (python -m tlx.main --help)")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{name} needs a value: {name}=VALUE")
            value = rest.pop(0)
        if name.startswith("--config."):
            overrides[name.removeprefix("--config.")] = value
        else:
            flags[name] = value
    return flags, overrides


def main(arguments: Sequence[str]) -> int:
    """Runs the command line and returns the exit code."""
    try:
        return _main(arguments)
    except InputError as error:
        return _complain(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _complain(f"no space left on the disk ({error.filename or 'while writing'})")
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG):
            return _complain(f"cannot write {error.filename}: {error.strerror}")
        traceback.print_exc()
    except KeyboardInterrupt:
        print(
            "interrupted; the same command starts again, from the last checkpoint if there is one",
            file=sys.stderr,
        )
        return INTERRUPTED
    except Exception:  # noqa: BLE001 (the last line of defence says what happened)
        traceback.print_exc()
    return FAILED


def _terminate(number: int, frame: Any) -> None:
    # Between training steps the loop answers both signals itself; elsewhere SIGTERM acts as Ctrl-C.
    raise KeyboardInterrupt


def _main(arguments: Sequence[str]) -> int:
    flags, overrides = parse(arguments)
    if "--help" in flags or "--h" in flags:
        print(HELP, end="")
        return DONE
    if "--fields" in flags:
        for name, (_, default) in config_lib.fields().items():
            print(
                f"--config.{name}={','.join(map(str, default)) if isinstance(default, tuple) else default}"
            )
        return DONE
    mode = flags.get("--mode", "train")
    if mode not in MODES:
        raise InputError(
            f"--mode is {mode!r}{config_lib.nearest(mode, MODES)}; there are: {', '.join(MODES)}"
        )
    _check_files(mode, flags)
    config, workdir = (_soup if mode == "soup" else _config_and_workdir)(flags, overrides)
    output = flags.get("--output", "")
    if mode == "predict":
        workdir.check_same(config, free=config_lib.OF_NEW_INPUTS)
        if not output:
            workdir.check_writable()
    elif mode != "lr_find":  # which is done for several configs, before there is a run
        workdir.check(config)

    # Only now the heavy imports: whatever is wrong above is said at once.
    from tlx import lr_find, prediction, run
    from tlx.soups import make
    from tlx.training.compilation import keep_compiled
    from tlx.training.loop import Interrupted

    keep_compiled()

    command = "python -m tlx.main " + shlex.join(arguments)
    try:
        if mode == "train":
            run.finetune(config, workdir.path, command=command)
        elif mode == "export":
            run.export(workdir.path, checkpoint=config.eval.checkpoint)
        elif mode == "predict":
            if not output:
                workdir.path.mkdir(parents=True, exist_ok=True)
            prediction.predict(
                workdir.path,
                flags["--input"],
                output=output or workdir.predictions,
                config=config,
            )
        elif mode == "lr_find":
            lr_find.lr_find(config, workdir.path)
        elif mode == "soup":
            make.make_soup(config, workdir.path, overrides, command=command)
        else:
            run.evaluate(config, workdir.path, command=command)
    except Interrupted as stop:
        print(
            f"{stop}; saved to {workdir.path}. The same command goes on from there:\n  {command}",
            flush=True,
        )
        return INTERRUPTED
    return DONE


def _config_and_workdir(flags: dict[str, str], overrides: dict[str, Any]) -> tuple[Config, Workdir]:
    if "--config" in flags:
        config = config_lib.build(config_lib.load(flags["--config"]), overrides)
        name = Path(flags["--config"]).stem
    elif "--workdir" in flags:  # the run that is there
        config = config_lib.build(Workdir(Path(flags["--workdir"])).read_config(), overrides)
        name = ""
    else:
        raise InputError(
            "--config=FILE is missing, as --config=configs/digits.py (python -m tlx.main --help)"
        )
    path = Path(flags["--workdir"]) if "--workdir" in flags else default_path(config, name)
    return config, Workdir(path)


def _check_files(mode: str, flags: dict[str, str]) -> None:
    """Raises InputError where prediction is not told its input, or another mode is."""
    given = [name for name in ("--input", "--output") if name in flags]
    if mode != "predict" and given:
        raise InputError(f"{given[0]} is of --mode=predict, but the mode is {mode}")
    if mode != "predict":
        return
    source = flags.get("--input", "")
    if not source:
        raise InputError("--mode=predict needs --input=FILE (python -m tlx.main --help)")
    if source != "-" and not Path(source).expanduser().exists():
        raise InputFileNotFoundError(f"--input={source} is not there")
    if "--output" in flags:
        check_output(Path(flags["--output"]), source)


def _soup(flags: dict[str, str], overrides: dict[str, Any]) -> tuple[Config, Workdir]:
    if "--config" in flags:
        raise InputError("--mode=soup takes the config of its runs: leave --config out")
    path = Path(flags["--workdir"]) if "--workdir" in flags else None
    if "soup.runs" not in overrides and path is not None and Workdir(path).config.is_file():
        config = config_lib.build(Workdir(path).read_config(), overrides)  # the soup that is there
        if not config.soup.runs:
            raise InputError(f"{path} is a run: a soup needs a folder of its own")
    else:
        config = soup_config(overrides, path)
    return config, Workdir(path or default_path(config, "soup"))


def _complain(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return WRONG_INPUT


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
