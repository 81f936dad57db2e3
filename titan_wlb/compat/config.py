"""Where TorchTitan's ConfigManager reads a TOML file and makes sections of it. Read in torchtitan 0.2.2."""

from collections.abc import Callable
from typing import Any

import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

# isort: split
from torchtitan.config import ConfigManager, JobConfig
from torchtitan.tools.logging import logger

_TELLS_A_TRACEBACK = "Error while loading config file"


class CheckedConfigManager(ConfigManager):
    """TorchTitan's manager, with a check of what the file says before anything is made of it.

    Args:
        config_cls: dataclass of the configuration; ``job.custom_config_module`` is merged into it as usual.
        check: called with (the file's tables, the dataclass); raises ValueError.

    ``parse_args`` raises ValueError, its text one line that begins with the file.
    """

    def __init__(self, config_cls: type[JobConfig], check: Callable[[dict[str, Any], type], None]):
        super().__init__(config_cls=config_cls)
        self._check = check
        self._file = ""

    def _maybe_load_toml(self, args: list[str]) -> dict[str, Any] | None:
        self._file = _config_file(args)
        logger.addFilter(_is_short)
        try:
            return super()._maybe_load_toml(args)
        except (OSError, ValueError) as error:  # also TOMLDecodeError and UnicodeDecodeError
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"job.config_file = {self._file!r} cannot be read: {reason}") from None
        finally:
            logger.removeFilter(_is_short)

    def _dict_to_dataclass(self, cls: type, data: dict[str, Any]) -> Any:
        if issubclass(cls, JobConfig):
            try:
                self._check(data, cls)
            except ValueError as error:
                raise ValueError(f"{self._file}: {error}") from None
        return super()._dict_to_dataclass(cls, data)


def _is_short(record: Any) -> bool:
    return _TELLS_A_TRACEBACK not in record.getMessage()


def _config_file(args: list[str]) -> str:
    """As TorchTitan finds it: the first of ``--job.config_file FILE`` and ``--job.config_file=FILE``."""
    for i, arg in enumerate(args):
        key, equals, value = arg.partition("=")
        if key.replace("-", "_") == "__job.config_file":
            return value if equals else "".join(args[i + 1 : i + 2])
    return ""
