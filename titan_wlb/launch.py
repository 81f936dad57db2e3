"""torchrun for one node, without its stack traces where a rank has already said in one line what is wrong.

Takes torchrun's own arguments. A rank that refuses its configuration ends with :data:`REFUSED`, and this process too,
with the rank's line on the screen, whichever ranks ``--local-ranks-filter`` shows.
"""

import logging
import os
import sys

REFUSED = 78  # EX_CONFIG of sysexits.h


def main() -> None:
    """Runs torchrun; ends with a rank's own exit status where a rank refused."""
    _help_without_ranks(sys.argv[1:])
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    elastic = "torch.distributed.elastic.multiprocessing"
    for name in (f"{elastic}.api", f"{elastic}.errors.error_handler", "torch.distributed.run"):
        logging.getLogger(name).addFilter(_is_news)
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        refusals = [failure for failure in error.failures.values() if failure.exitcode == REFUSED]
        if refusals:
            message = refusals[0].message
            sys.stdout.flush()  # what the ranks said comes before, also in a file
            print(message["message"] if isinstance(message, dict) else message, file=sys.stderr)
            raise SystemExit(REFUSED) from None
        raise


def _help_without_ranks(arguments: list[str]) -> None:
    """``... -m MODULE ... --help`` asks the module, once: this process becomes it."""
    for i, argument in enumerate(arguments):
        if argument in ("-m", "--module"):
            if {"-h", "--help"} & set(arguments[i + 2 :]):
                os.execv(sys.executable, [sys.executable, "-m", *arguments[i + 1 :]])
            return


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record of torchrun tells more than that a rank refused and the others were stopped."""
    text = record.getMessage()
    return not (
        f"exitcode: {REFUSED}" in text
        or "closing signal" in text
        or "OMP_NUM_THREADS" in text
        or "no error file" in text
    )


if __name__ == "__main__":
    main()
