"""Entry points of the installed commands.

They import their command only here, after Ctrl-C has been set to end the process without a traceback:
nothing has begun then. Once the command runs, Ctrl-C raises KeyboardInterrupt (`cli.common.interrupts`).
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def prep() -> None:
    """Run `alexnet-prep`."""
    from cli.prep import main

    main()


def train() -> None:
    """Run `alexnet-train`."""
    from cli.train import main

    main()


def evaluate() -> None:
    """Run `alexnet-eval`."""
    from cli.eval import main

    main()


def show() -> None:
    """Run `alexnet-show`."""
    from cli.show import main

    main()


def predict() -> None:
    """Run `alexnet-predict`."""
    from cli.predict import main

    main()


def export() -> None:
    """Run `alexnet-export`."""
    from cli.export import main

    main()


def plan() -> None:
    """Run `alexnet-plan`."""
    from cli.plan import main

    main()


def bench() -> None:
    """Run `alexnet-bench`."""
    from cli.bench import main

    main()
