"""torchrun for one node, without its stack traces where a rank has already said in one line what is wrong.

Takes torchrun's own arguments. A rank that refuses its configuration ends with :data:`REFUSED`.
"""

import logging
import sys

REFUSED = 78  # EX_CONFIG of sysexits.h


def main() -> None:
    """Runs torchrun; ends with a rank's own exit status where a rank refused."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    for name in ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.run"):
        logging.getLogger(name).addFilter(_is_news)
    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        if REFUSED in {failure.exitcode for failure in error.failures.values()}:
            raise SystemExit(REFUSED) from None
        raise


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record of torchrun tells more than that a rank refused and the others were stopped."""
    text = record.getMessage()
    return not (f"exitcode: {REFUSED}" in text or "closing signal" in text or "OMP_NUM_THREADS" in text)


if __name__ == "__main__":
    main()
