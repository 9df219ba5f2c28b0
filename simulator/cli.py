"""The command ``wardround``: one function per command, each reads its arguments, calls one function and prints.

Imports of model code stay inside the functions: ``--help`` and ``list`` answer at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data_settings import DataSettings
    from .experiments import ExperimentsFile

OK, DIFFERENT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: fine; ``verify`` found a difference, or runs of a sweep failed; a user's mistake, or bad data; Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: Words of the command line; None: those of the process.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no lines or umlauts gets a question mark
    try:
        code = args.function(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _complain(args.interrupted, args.traceback)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as in `wardround list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except ArithmeticError as error:  # settings such as 1e300 overflow somewhere
        _complain(f"error: a number left the range of computing ({error}); look for an extreme setting", args.traceback)
        return MISTAKE
    except (ValueError, OSError) as error:
        _complain(f"error: {_message(error)}", args.traceback)
        return MISTAKE
    return int(code)


def _complain(text: str, with_traceback: bool) -> None:
    if with_traceback or os.environ.get("WARDROUND_DEBUG") == "1":
        traceback.print_exc()
    print(f"wardround: {text}", file=sys.stderr)


def _message(error: ValueError | OSError) -> str:
    """The error in words; of the system's errors without their number."""
    if isinstance(error, OSError) and error.strerror:
        file = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{file}"
    return str(error)


# ---- commands --------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from .config import load_experiment
    from .reports.run_scores import results_text
    from .results import RunRecords
    from .run import run

    file = _experiments(args)
    device = [] if args.device is None else [f"runtime.device={args.device}"]
    experiment = load_experiment(args.experiment, file, [*args.set, *device])
    if not args.quiet:
        print(f"experiment {experiment.name} from {_called(file)}", flush=True)
    outcome = run(
        experiment,
        data=args.data,
        out=args.out,
        quiet=args.quiet,
        images=not args.no_images,
        record_updates=args.record_updates,
        allow_changed_environment=args.allow_changed_environment,
        experiments_file=_called(file),
        log=args.log,
    )
    if outcome.already_finished:
        print(outcome.note)
    print(results_text(RunRecords.load(outcome.path)))
    print(f"\nrun:    {outcome.path}\nreport: {outcome.path / 'report.html'}")
    return OK


def _sweep(args: argparse.Namespace) -> int:
    from .sweeps.plan import make_plan

    file = _experiments(args)
    device = [] if args.device is None else [f"runtime.device={args.device}"]
    plan = make_plan(args.sweep, file, [*args.set, *device])
    if args.dry_run:
        from .sweeps.estimate import estimate

        estimated = estimate(plan, data=args.data, out=args.out)
        print(estimated.text())
        return MISTAKE if estimated.problems else OK
    from .sweeps.execution import How, run_sweep
    from .sweeps.terminal import failures_text, sweep_text

    how = How(
        data=args.data,
        out=args.out,
        quiet=args.quiet,
        images=not args.no_images,
        allow_changed_environment=args.allow_changed_environment,
        experiments_file=_called(file),
        log=args.log,
    )
    args.interrupted += f"; `wardround report {args.out / plan.name}` shows what there is"
    outcome = run_sweep(plan, how, args.shard)
    print(sweep_text(outcome))
    if outcome.failed:
        print(f"wardround: {failures_text(outcome)}", file=sys.stderr)
    return DIFFERENT if outcome.failed else OK


def _report(args: argparse.Namespace) -> int:
    from .sweeps.records import PLAN, SweepRecords

    images = not args.no_images
    if (args.run / PLAN).is_file():
        from .reports.sweep import write_sweep_report

        records = SweepRecords.load(args.run)
        print(write_sweep_report(records, images=images, out=args.out, export_to=args.export))
    else:
        from .reports.run import write_report

        print(write_report(args.run, images=images, out=args.out, export_to=args.export))
    return OK


def _runs(args: argparse.Namespace) -> int:
    from .runs_table import list_runs, listing_json, listing_text

    listing = list_runs(args.out, args.name)
    print(listing_json(listing) if args.json else listing_text(listing))
    return OK


def _compare(args: argparse.Namespace) -> int:
    from .compare import compare, comparison_json, comparison_text

    comparison = compare(args.first, args.second)
    print(comparison_json(comparison) if args.json else comparison_text(comparison))
    return OK


def _clean(args: argparse.Namespace) -> int:
    from .clean import KINDS, clean, cleaning_text, look

    kinds = [kind for kind in KINDS if getattr(args, kind)] or ([] if args.cache else ["checkpoints"])
    if kinds:
        found = look(args.paths, args.out, kinds)
        print(cleaning_text(clean(found) if args.yes else found, done=args.yes))
    if args.cache:
        _clean_cache(yes=args.yes)
    if not args.yes and (args.cache or found.parts):
        print("nothing was removed; the same command with --yes removes it")
    return OK


def _clean_cache(*, yes: bool) -> None:
    from ..datasets.fingerprints import cache_folder
    from .clean import cache_sizes, cache_text, clean_cache
    from .reports.page import bytes_text

    cache = cache_folder()
    print(cache_text(cache, cache_sizes(cache)))
    if yes:
        print(f"freed {bytes_text(clean_cache(cache))}")


def _predict(args: argparse.Namespace) -> int:
    from .prediction import predict

    predicted = predict(
        args.run,
        args.images,
        args.out,
        hospital=args.hospital,
        round_number=args.round,
        probabilities=args.probabilities,
        overlays=args.overlays,
        any_intensities=args.any_intensities,
        device=args.device,
        quiet=args.quiet,
    )
    print(predicted.text)
    return OK


def _verify(args: argparse.Namespace) -> int:
    from .verify import verify

    verdict = verify(args.run, data=args.data, allow_changed_environment=args.allow_changed_environment)
    print(verdict)
    return OK if verdict.identical else DIFFERENT


def _export(args: argparse.Namespace) -> int:
    from .exports import export

    folder = export(
        args.run,
        args.form,
        args.out,
        hospital=args.hospital,
        round_number=args.round,
        licence=args.licence,
        base=not args.no_base,
    )
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    print("\n".join([str(folder), *(f"  {_size(file):>8}  {file.relative_to(folder)}" for file in files)]))
    return OK


def _size(file: Path) -> str:
    from .reports.page import bytes_text

    return bytes_text(file.stat().st_size)


def _replay(args: argparse.Namespace) -> int:
    from .replay import named_aggregators, replay
    from .reports.replay import ONE_STEP, replay_table, write_replay

    steps = replay(args.run, named_aggregators(args.aggregators))
    written = write_replay(args.out or args.run / "replay", args.run, steps)
    print("\n\n".join([replay_table(steps).text(width=100), textwrap.fill(ONE_STEP, 100), f"page: {written}"]))
    return OK


def _table(args: argparse.Namespace) -> int:
    from .table import TableSetting, assumed_text, known_classes, rows, text

    setting, assumed = TableSetting(), False
    if args.experiment is not None:
        from .config import load_experiment

        experiment = load_experiment(args.experiment, _experiments(args), args.set)
        setting = TableSetting.of(experiment)
        assumed = args.classes is None and known_classes(experiment) is None
    elif args.set:
        raise ValueError("--set: expected an experiment to change, as in `wardround table hippocampus --set rounds=10`")
    given = {name: getattr(args, name) for name in ("model", "image_size", "classes", "rank", "rounds")}
    found = rows(setting.changed(**{name: value for name, value in given.items() if value is not None}))
    print(json.dumps([row.as_dict() for row in found], indent=2) if args.json else text(found))
    if assumed:
        print(assumed_text(setting.classes), file=sys.stderr if args.json else sys.stdout)
    return OK


def _list(args: argparse.Namespace) -> int:
    from .sweeps.definition import size_text

    file = _experiments(args)
    experiments = [name for name in file.entries if name not in file.sweeps]
    print("\n".join([f"experiments of {_called(file)}\n", *(_entry_text(file, name) for name in experiments)]))
    if file.sweeps:
        sweeps = (_entry_text(file, name, size_text(name, file)) for name in file.sweeps)
        print("\n".join(["\nsweeps: `wardround sweep NAME`, with --dry-run for the plan alone\n", *sweeps]))
    return OK


def _entry_text(file: ExperimentsFile, name: str, *size: str) -> str:
    """An entry with its purpose, its size and what it says of itself."""
    entry = file.entries[name]
    facts = [f"{label}: {entry[key]}" for key, label in _FACTS.items() if key in entry]
    lines = [part for text in (entry.get("purpose", ""), *size, *facts) for part in textwrap.wrap(text, 96)]
    return "\n    ".join([name, *lines])


def _bench(args: argparse.Namespace) -> int:
    from .bench.command import bench, settings

    given = {name: value for name, value in vars(args).items() if name in _BENCH}
    print(bench(settings(given), args.csv))
    return OK


def _data_check(args: argparse.Namespace) -> int:
    from .data_commands import check_data

    settings = _data_settings(args)
    checked = check_data(settings, args.data, report=args.report, images=not args.no_images, quiet=args.quiet)
    print(checked.text, file=sys.stderr if checked.problems else sys.stdout)
    return MISTAKE if checked.problems else OK


def _data_prepare(args: argparse.Namespace) -> int:
    from .data_commands import prepare_data

    print(prepare_data(_data_settings(args), args.data, quiet=args.quiet))
    return OK


def _data_phantom(args: argparse.Namespace) -> int:
    from .data_commands import make_phantom

    given = {name: getattr(args, name) for name in _PHANTOM}
    settings = {name: value for name, value in given.items() if value is not None}
    print(make_phantom(args.layout, args.out, settings, quiet=args.quiet))
    return OK


_PHANTOM = (
    "hospitals", "train_cases", "test_cases", "train_images", "test_images", "classes", "skew", "difficulty", "size",
    "slices", "seed",
)  # fmt: skip


def _data_settings(args: argparse.Namespace) -> DataSettings:
    from .data_settings import load_data_settings

    return load_data_settings(args.name, _experiments(args), args.set)


_FACTS = {"paper": "paper", "expected_time": "time", "expected_score": "expected"}


def _experiments(args: argparse.Namespace) -> ExperimentsFile:
    from .experiments import open_file

    return open_file(args.experiments)


def _called(file: ExperimentsFile) -> str:
    """What to call the file: the packaged one lies wherever the package was installed."""
    return "the packaged experiments.yaml" if file.packaged else str(file.path)


# ---- arguments -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wardround",
        description="Federated parameter-efficient fine-tuning of vision foundation models, simulated on one machine.",
        epilog="Example: wardround run quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _run_arguments(_command(commands, "run", _run, "run an experiment, or go on with it", "run quickstart"))
    _sweep_arguments(
        _command(commands, "sweep", _sweep, "run what a sweep compares, and compare it", "sweep sweep-tiny")
    )
    _report_arguments(
        _command(commands, "report", _report, "write the HTML page of a run or sweep", "report runs/quickstart/ID")
    )
    _runs_arguments(_command(commands, "runs", _runs, "the runs and sweeps there are, and the disk they take", "runs"))
    _compare_arguments(
        _command(
            commands,
            "compare",
            _compare,
            "what differs between two runs, and what came of it",
            "compare runs/tiny/ID runs/tiny/OTHER",
        )
    )
    _clean_arguments(
        _command(commands, "clean", _clean, "remove what finished runs no longer need", "clean runs/tiny --yes")
    )
    _predict_arguments(
        _command(
            commands,
            "predict",
            _predict,
            "segment volumes or classify images with the model of a run",
            "predict runs/quickstart/ID scan.nii.gz --out DIR",
        )
    )
    _verify_arguments(
        _command(commands, "verify", _verify, "repeat a run's last round and compare", "verify runs/quickstart/ID")
    )
    _export_arguments(
        _command(
            commands, "export", _export, "write a run's model for other programs", "export runs/tiny/ID --format peft"
        )
    )
    _replay_arguments(
        _command(
            commands,
            "replay",
            _replay,
            "compare aggregators on the recorded updates of a run",
            "replay runs/tiny/ID --aggregators fedit,flap_sam,fedex_lora",
        )
    )
    _table_arguments(
        _command(commands, "table", _table, "what each method trains and sends", "table --model sam-vit-b --rank 32")
    )
    _experiments_argument(_command(commands, "list", _list, "the experiments and sweeps there are", "list"))
    _bench_arguments(
        _command(commands, "bench", _bench, "measure speed and memory beside other engines", "bench --quick --csv FILE")
    )
    _data_commands(commands.add_parser("data", help="check, prepare or make data", allow_abbrev=False))
    return parser


def _data_commands(parser: argparse.ArgumentParser) -> None:
    parser.description = "Check a folder of data, prepare it for training, or make phantoms."
    parser.epilog = "Example: wardround data check fed_kits19 --root DIR"
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    check = _command(commands, "check", _data_check, "find every problem of a folder", "data check fed_ixi --root DIR")
    _data_arguments(check)
    check.add_argument(
        "--report", type=Path, metavar="FILE", help="write a page with an overlay and histogram per site"
    )
    check.add_argument("--no-images", action="store_true", help="keep slices of patients' images out of the page")
    prepare = _command(
        commands, "prepare", _data_prepare, "read, clip and resize volumes into the cache", "data prepare fed-kits19"
    )
    _data_arguments(prepare)
    prepare.set_defaults(interrupted="interrupted; the same command goes on with the cases that are left")
    _phantom_arguments(
        _command(commands, "phantom", _data_phantom, "write phantom hospitals", "data phantom prostate --out DIR")
    )


Commands = argparse._SubParsersAction  # argparse has no public name for it


def _command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    purpose: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"Example: wardround {example}",
        allow_abbrev=False,
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error came from (or WARDROUND_DEBUG=1)")
    parser.set_defaults(function=function, interrupted="interrupted")
    return parser


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="an experiment, or a data set such as fed_kits19")
    parser.add_argument(
        "--root", "--data", dest="data", type=Path, metavar="DIR", help="folder of the data (or WARDROUND_DATA)"
    )
    _set_argument(parser)
    _experiments_argument(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _phantom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layout", metavar="LAYOUT", choices=LAYOUTS, help=" | ".join(LAYOUTS))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--hospitals", type=int, metavar="N", help="how many (4)")
    parser.add_argument("--train-cases", type=int, metavar="N", help="training volumes per hospital (5)")
    parser.add_argument("--test-cases", type=int, metavar="N", help="test volumes per hospital (3)")
    parser.add_argument("--train-images", type=int, metavar="N", help="images: training images per hospital (200)")
    parser.add_argument("--test-images", type=int, metavar="N", help="images: test images per hospital (100)")
    parser.add_argument("--classes", type=int, metavar="C", help="images: kinds of lesion, 2 to 7 (5)")
    parser.add_argument("--skew", type=float, metavar="S", help="images: how unequal a hospital's classes are (0.3)")
    parser.add_argument("--difficulty", choices=("easy", "medium", "hard"), help="how hard (medium)")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="rows and columns, about (64)")
    parser.add_argument("--slices", type=int, metavar="N", help="slices of a volume, about (16)")
    parser.add_argument("--seed", type=int, metavar="N", help="makes other patients and scanners (0)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


LAYOUTS = ("msd", "fed_kits19", "fed_ixi", "prostate", "images")


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="a name from `wardround list`")
    _making_arguments(parser)
    parser.add_argument("--record-updates", action="store_true", help="keep every round's updates, for replay")


def _sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="NAME", help="a sweep from `wardround list`")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan, what it sends, its time and disk; run nothing"
    )
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="the I-th of N parts, for several processes"
    )
    _making_arguments(parser)


def _making_arguments(parser: argparse.ArgumentParser) -> None:
    """What making one run and many have in common."""
    _data_argument(parser)
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")
    _set_argument(parser)
    _experiments_argument(parser)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), help="where to compute (auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--no-images", action="store_true", help="keep slices of patients' images out of the reports")
    _log_argument(parser)
    _environment_argument(parser)
    parser.set_defaults(interrupted="interrupted; the same command goes on after the last finished round")


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, such as 2/8, got {text!r}")
    return int(number), int(of)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="the folder of a run, runs/EXPERIMENT/ID, or of a sweep, runs/SWEEP"
    )
    parser.add_argument("--no-images", action="store_true", help="keep slices of patients' images out of the report")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (report.html in the run)")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="write its numbers, figures and tables as files, too"
    )


def _runs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this experiment, or the runs of this sweep")
    _out_argument(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, metavar="RUN", help=f"the {name} run's folder, runs/EXPERIMENT/ID")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _clean_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Shows what can be removed of finished runs, and removes it with --yes. Runs that are not finished, or that a "
        "process works on, are left alone. Without a kind: the checkpoints."
    )
    parser.add_argument(
        "paths", type=Path, metavar="PATH", nargs="*", help="runs, sweeps or experiments (everything below --out)"
    )
    _out_argument(parser)
    parser.add_argument("--checkpoints", action="store_true", help="remove checkpoints: verify needs them")
    parser.add_argument("--predictions", action="store_true", help="remove label maps of test volumes")
    parser.add_argument("--updates", action="store_true", help="remove recorded updates: replay needs them")
    parser.add_argument("--cache", action="store_true", help="remove prepared volumes and kept features of all runs")
    parser.add_argument("--yes", action="store_true", help="remove, do not only show")


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes a label map of every volume, on its grid and with its header, or one CSV file with the class of every "
        "picture."
    )
    _run_argument(parser)
    parser.add_argument(
        "images", type=Path, metavar="IMAGE", nargs="+", help="files, or folders of NIfTI files or of pictures"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--hospital", metavar="NAME", help="whose model (that of a site never seen)")
    parser.add_argument("--round", type=int, metavar="N", help="after which round (the last; runs keep two)")
    parser.add_argument("--probabilities", action="store_true", help="of volumes: write those of every class, too")
    parser.add_argument("--overlays", action="store_true", help="of volumes: write a picture of a slice, too")
    parser.add_argument(
        "--any-intensities",
        action="store_true",
        help="go on where intensities say that a volume is of another kind (CT, MR) than those of the training",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where (auto)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(interrupted="interrupted; label maps that were finished before, if any, are kept")


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    _run_argument(parser)
    _data_argument(parser)
    _environment_argument(parser)


EXPORTS = ("peft", "hf", "sam-pth")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument(
        "--format",
        dest="form",
        required=True,
        choices=EXPORTS,
        help="peft: adapters and their base; hf: merged, for transformers; sam-pth: merged, for segment-anything",
    )
    parser.add_argument("--hospital", metavar="NAME", help="the model of a hospital (that of a site never seen)")
    parser.add_argument("--round", type=int, metavar="N", help="after which round (the last; runs keep two)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder (RUN/export/FORMAT)")
    parser.add_argument("--licence", metavar="TEXT", help="of the base, where it does not say it, such as apache-2.0")
    parser.add_argument("--no-base", action="store_true", help="peft: leave the frozen base out")


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    _run_argument(parser)
    parser.add_argument(
        "--aggregators",
        required=True,
        metavar="NAMES",
        help="names separated by commas; with settings as '{name: flap_sam, split: left}'",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write into (replay in the run)")


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="take model, rank and rounds from here")
    parser.add_argument("--model", help="sam-vit-b, -l, -h, sam-mini, vit-ti16, -s16, -b16, -l16, vit-mini (sam-vit-b)")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="height and width of a slice or image (224)")
    parser.add_argument("--classes", type=int, metavar="C", help="classes, of SAM those of the foreground (2)")
    parser.add_argument("--rank", type=int, metavar="R", help="of LoRA (32) and of low-rank prompts (4)")
    parser.add_argument("--rounds", type=int, help="rounds of the paper-style overhead (25)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _set_argument(parser)
    _experiments_argument(parser)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"{parser.epilog}\nWhat every column means, and results: docs/performance.md"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, (metavar, words) in _BENCH.items():
        option = f"--{name.replace('_', '-')}"
        if metavar:
            parser.add_argument(option, metavar=metavar, help=words)
        else:
            parser.add_argument(option, action="store_true", help=words)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every column of every row")


_BENCH = {
    "quick": ("", "the smallest of everything: at most 3 minutes on two cores"),
    "parts": ("NAMES", "engines,memory,stacked,features,kernel (all)"),
    "engines": ("NAMES", "ours, naive, flower, bare, separated by commas (all; quick: without flower)"),
    "hospitals": ("NUMBERS", "numbers of hospitals (6; on CUDA 6,100)"),
    "methods": ("NAMES", "what trains (flap_sam,decoder)"),
    "models": ("NAMES", "tiny, mini, vit-b, vit-l, vit-h (tiny,mini; on CUDA mini,vit-b)"),
    "cohorts": ("NAMES", "how our engine takes hospitals (sequential,stacked)"),
    "aggregator": ("NAME", "what the server does (flap_sam)"),
    "augment": ("NAME", "what is done to a window (none)"),
    "image_size": ("PIXELS", "height and width (the model's: 32, 64 or 224)"),
    "batch_size": ("B", "windows of a step (the model's: 8, 16 or 6)"),
    "rank": ("R", "of LoRA (the model's: 8 or 32)"),
    "steps": ("N", "optimizer steps of a hospital in a round (5)"),
    "precision": ("NAME", "fp32, bf16 or fp64 (fp32)"),
    "repetitions": ("N", "of what medians are taken (5; quick: 9)"),
    "stack": ("N", "most hospitals that share a step (8)"),
    "compile": ("", "compile the model, in our engine"),
    "device": ("NAME", "auto, cpu, cuda or mps (auto)"),
    "threads": ("N", "of the CPU (what torch takes; quick: 1)"),
    "seed": ("N", "of volumes, initial values and draws (0)"),
    "profile": ("FILE", "write a trace of one round of the first row of our engine"),
}
"""Options of `bench` but for its CSV: what they stand for in the help, nothing for a switch, and the help itself."""


def _run_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, runs/EXPERIMENT/ID")


def _data_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data (or WARDROUND_DATA)")


def _set_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="change a setting, such as method.lora.rank=8; may be given again",
    )


def _experiments_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--experiments",
        type=Path,
        metavar="FILE",
        help="file of experiments (./experiments.yaml if it is there, else the packaged one)",
    )


def _out_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of all runs (runs)")


def _log_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log", choices=("tensorboard",), help="write scalars for TensorBoard too, into tensorboard/ of every run"
    )


def _environment_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-changed-environment",
        action="store_true",
        help="go on although code, device or threads changed since the run began",
    )


class _Version(argparse.Action):
    """Prints the version; the distribution's data are read only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help, default=argparse.SUPPRESS)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"wardround {version('wardround')}")
        parser.exit()
