"""The command: a group whose first word may be a pid, and the one place where errors become exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import click

from tracer import __version__
from tracer.cli.attach import attach
from tracer.cli.diff import diff
from tracer.cli.doctor import doctor
from tracer.cli.maps import maps
from tracer.cli.ps import ps
from tracer.cli.record import record
from tracer.cli.report import report
from tracer.cli.watch import watch
from tracer.errors import EXIT_CANNOT_TRACE, EXIT_USAGE, MemtraceError
from tracer.report.safe import printable


class _PidFirst(click.Group):
    """``memtrace 1234 -d 5`` means ``memtrace attach 1234 -d 5``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["attach", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_PidFirst,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Examples:  sudo memtrace 1234    sudo memtrace 1234 -d 30    sudo memtrace 1234 -d 30 --json -o out.json",
)
@click.version_option(__version__, "-V", "--version", message="memtrace %(version)s")
def cli() -> None:
    """Which call stacks grow a running process, and where every byte of the growth went.

    \b
    memtrace PID            trace until Ctrl-C: live view, then the report
    memtrace attach PID     the same; its options: memtrace attach --help
    memtrace record PID     the same, and keep the session in a file
    memtrace report FILE    a recorded session again, or part of it
    memtrace diff A B       what has changed between two recorded sessions
    memtrace watch PID      growth by class and VMA, from /proc alone
    memtrace maps PID...    the VMAs of processes, as pmap, with their classes
    memtrace ps             memory of all processes: PSS, USS, swap; by user, ...
    memtrace doctor [PID]   what this machine allows, and what to do about it
    """


cli.add_command(attach)
cli.add_command(record)
cli.add_command(report)
cli.add_command(diff)
cli.add_command(watch)
cli.add_command(maps)
cli.add_command(ps)
cli.add_command(doctor)


def main() -> None:
    """Run the command line; never ends in a traceback for a cause that the user can act on."""
    _open_standard_files()
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        result: Any = cli.main(prog_name="memtrace", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.Abort:
        sys.exit(EXIT_CANNOT_TRACE)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "memtrace"
        _print_error(_usage(error), f"see: {command} --help")
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _print_error(error.format_message(), None)
        sys.exit(error.exit_code)
    except MemtraceError as error:
        _print_error(error.cause, error.fix)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _print_error("interrupted before there was anything to report", None)
        sys.exit(EXIT_CANNOT_TRACE)
    except BrokenPipeError:
        sys.exit(EXIT_CANNOT_TRACE)  # who read the output has gone
    except Exception as error:
        if os.environ.get("MEMTRACE_DEBUG"):
            raise
        _print_error(
            f"memtrace failed: {type(error).__name__}: {error}",
            "run again with MEMTRACE_DEBUG=1 and report what it says",
        )
        sys.exit(EXIT_CANNOT_TRACE)


def _open_standard_files() -> None:
    """Where the caller has closed one, put /dev/null in its place: else the next file opened would take its number.

    A closed standard output stays unwritable, so that a report which goes there fails aloud.
    """
    for descriptor, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, flags)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w", closefd=False))


def _usage(error: click.UsageError) -> str:
    """The message, without click's name of the parameter where ours says it all."""
    return error.message if "is no process id" in error.message else error.format_message()


def _print_error(cause: str, fix: str | None) -> None:
    lines = [f"memtrace: {printable(cause)}"]
    if fix:
        lines.append(f"  {printable(fix)}")
    with contextlib.suppress(OSError):  # the terminal may be gone: then the exit code says it
        print("\n".join(lines), file=sys.stderr, flush=True)
