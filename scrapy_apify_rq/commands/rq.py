"""The command ``scrapy rq``, which only selects a subcommand.

A subcommand is a module with ``NAME``, ``HELP`` (the list of subcommands shows its first sentence),
``EXAMPLE``, ``add_options(parser)`` and ``run(settings, options)``. ``run`` raises UsageError for
invalid options (exit status 2), and RequestQueueError for everything else that goes wrong, which
includes finding nothing (exit status 1). Ctrl-C gives exit status 130.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from importlib import import_module
from typing import Any, ClassVar, Final, Protocol

from scrapy.commands import ScrapyCommand
from scrapy.exceptions import UsageError
from scrapy.settings import Settings
from scrapy.utils.log import install_scrapy_root_handler

from scrapy_apify_rq.errors import RequestQueueError, Unavailable


class Subcommand(Protocol):
    NAME: str
    HELP: str
    EXAMPLE: str

    def add_options(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, settings: Settings, options: argparse.Namespace) -> None: ...


# Imported late, because Scrapy loads this module for every command, including "scrapy crawl".
_MODULES: Final = (
    "status",
    "list_queues",
    "list_entries",
    "show",
    "list_errors",
    "retry",
    "add",
    "items",
    "export",
    "import_entries",
    "import_jobdir",
    "purge",
    "input_schema",
    "serve",
    "open_page",
)
# The exit status that shells report for a program that SIGINT ended.
_INTERRUPTED = 130


def subcommands() -> list[Subcommand]:
    modules: list[Any] = [import_module(f"scrapy_apify_rq.commands.{name}") for name in _MODULES]
    return modules


def parser() -> argparse.ArgumentParser:
    """Return a parser of ``scrapy rq``, from which shtab makes the completion of a shell.

    Completion while Scrapy runs, as argcomplete does it, is not possible: Scrapy makes the parser
    of a command only after it has found the command's name among its arguments, and there are none.
    """
    scrapy, command = argparse.ArgumentParser("scrapy"), Command()
    command.settings = Settings()
    command.add_options(scrapy.add_subparsers().add_parser("rq", help=command.short_desc()))
    return scrapy


class Command(ScrapyCommand):
    requires_project = False
    requires_crawler_process = False
    default_settings: ClassVar[dict[str, Any]] = {"LOG_ENABLED": False}

    def syntax(self) -> str:
        return "<subcommand> [options]"

    def short_desc(self) -> str:
        return "Inspect, repair and move Apify request queues"

    def long_desc(self) -> str:
        return f"{self.short_desc()}. An entry is a request as the queue stores it."

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        # As the subcommands have it. Scrapy's takes each line that ends with a colon for a heading.
        parser.prog, parser.formatter_class = "scrapy rq", argparse.HelpFormatter
        subparsers = parser.add_subparsers(
            title="Subcommands",
            dest="subcommand",
            required=True,
            metavar="<subcommand>",
            prog="scrapy rq",
        )
        parser.epilog = (
            "Example: scrapy rq status. For help on a subcommand: scrapy rq status --help."
            " Exit status: 0 for success, 1 if it failed or nothing matched, 2 for wrong options,"
            " 130 if it was interrupted."
        )
        for subcommand in subcommands():
            subparser = subparsers.add_parser(
                subcommand.NAME,
                help=subcommand.HELP.partition(". ")[0],
                description=subcommand.HELP,
                epilog=f"Example: {subcommand.EXAMPLE}",
            )
            subcommand.add_options(subparser)
            # Scrapy's own options go after the subcommand, because that is where people type them.
            super().add_options(subparser)
            subparser.set_defaults(run=subcommand.run, parser=subparser)

    def process_options(self, args: list[str], opts: argparse.Namespace) -> None:
        if args:
            opts.parser.error(f"unrecognized arguments: {' '.join(args)}")
        super().process_options(args, opts)

    def run(self, args: list[str], opts: argparse.Namespace) -> None:
        from scrapy_apify_rq.commands import output

        assert isinstance(self.settings, Settings)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # As on the standard error: what its encoding lacks must not end the command.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            if opts.loglevel or opts.logfile:
                _log(self.settings)
            opts.run(self.settings, opts)
            sys.stdout.flush()  # here, where it may fail
        except UsageError as error:
            opts.parser.error(str(error))
        except Unavailable as error:
            output.say(
                f"scrapy rq {opts.subcommand}: {error.problem}. Check APIFY_API_BASE_URL and the"
                " network, and run the command again"
            )
            self.exitcode = 1
        except RequestQueueError as error:
            output.say(f"scrapy rq {opts.subcommand}: {error}")
            self.exitcode = 1
        except OSError as error:
            if error.filename is not None:  # of the project's own code
                raise
            # Of the standard streams: the disk is full, say. If the reader of our output has
            # exited, as "head" does, nobody needs a message.
            if not isinstance(error, BrokenPipeError):
                output.say(f"scrapy rq {opts.subcommand}: {error.strerror or error}")
            # https://docs.python.org/3/library/signal.html#note-on-sigpipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exitcode = 1
        except KeyboardInterrupt:
            print(
                f"scrapy rq {opts.subcommand}: interrupted. What it did so far is kept; you can"
                " safely run it again",
                file=sys.stderr,
            )
            self.exitcode = _INTERRUPTED


def _log(settings: Settings) -> None:
    """Log as a crawl would, to stderr or LOG_FILE."""
    try:
        install_scrapy_root_handler(settings)
    except OSError as error:
        raise UsageError(f"cannot write the log to {settings['LOG_FILE']}: {error}") from error
    except ValueError as error:
        raise UsageError(f"LOG_LEVEL is {settings['LOG_LEVEL']!r}: {error}") from error
