"""From the command line to a configuration that can run, or to one line that says why not."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence

from titan_wlb.compat.config import CheckedConfigManager
from titan_wlb.job_config import JobConfig
from titan_wlb.validate import ConfigError, check_config, check_toml

__all__ = ["one_line", "parse"]

_FROM_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_RULES = "─━╭╮╰╯├┤┌┐└┘-"  # what tyro's boxes are drawn with, on terminals and elsewhere
_SIDES = " │┃|"


def parse(args: Sequence[str], environment: Mapping[str, str]) -> JobConfig:
    """Reads the file and the flags, and checks both. No process group exists or is made.

    Args:
        args: as TorchTitan takes them, ``--job.config_file FILE --section.key value ...``.
        environment: of the process, as torchrun makes it.

    Raises:
        ConfigError: the configuration cannot run, or not with so many ranks.
        SystemExit: with 0, after ``--help`` has been printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            config = CheckedConfigManager(JobConfig, check_toml).parse_args(list(args))
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(f"{_what_tyro_said(said.getvalue())}; --help lists all flags") from None
    except ModuleNotFoundError as error:
        raise ConfigError(f"job.custom_config_module: {error}") from None
    except (ValueError, AssertionError) as error:  # TorchTitan's sections raise the latter, too
        raise ConfigError(one_line(error)) from None
    except Exception as error:
        if type(error) is not Exception:  # TorchTitan raises that for an old tokenizer.model
            raise
        raise ConfigError(one_line(" ".join(map(str, error.args)))) from None
    sys.stderr.write(said.getvalue())
    check_config(config, int(environment.get("WORLD_SIZE", "1")))
    if missing := [name for name in _FROM_TORCHRUN if name not in environment]:
        raise ConfigError(f"{', '.join(missing)} not in the environment; start with ./run_train.sh, or with torchrun")
    return config


def one_line(text: object) -> str:
    """The text without its line breaks."""
    return " ".join(str(text).split())


def _what_tyro_said(text: str) -> str:
    """The message in tyro's box: the first paragraph that is not its title.

    ╭─ Parsing error ─────────╮          Parsing error
    │ Invalid choice 'x' ...  │    or    -----------------------
    ├─────────────────────────┤          Invalid choice 'x' ...
    │ For full helptext, ...  │          -----------------------
    """
    paragraphs: list[list[str]] = [[]]
    for line in text.splitlines():
        words = line.strip(_SIDES)
        if words and not words.strip(_RULES + " "):
            paragraphs.append([])
        elif words and words[0] not in _RULES[:-1]:  # the box's title stands in a rule
            paragraphs[-1].append(words)
    said = [one_line(" ".join(paragraph)) for paragraph in paragraphs if paragraph]
    titled = "╭" not in text and len(said) > 1
    return said[1 if titled else 0].rstrip(".") if said else "the flags cannot be read"
