"""Each side of a comparison in a process of its own, which stands still while it is not its turn.

In one process the sides would disturb each other: workers of the one fetch ahead while the other is timed, and what one
does with the memory of its process (datasets.keep_memory) serves the other too.
"""

import contextlib
import multiprocessing
import os
import signal


def serve(pipe, make, arguments):
    """The process of a side: make(*arguments) is called once, what it returns once for each turn."""
    with contextlib.suppress(AttributeError):  # Windows has no process groups
        os.setpgrp()  # the workers of a DataLoader stand still with it
    multiprocessing.set_start_method(None, force=True)  # those start as they always do, not as this process did
    turn = make(*arguments)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(turn())


class Side:
    def __init__(self, make, *arguments):
        """make: a function of a module, for it is looked up by its name in the new process. Waits until it is done."""
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, make, arguments))
        self.process.start()
        other.close()
        self.answer()

    def answer(self):
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit("a side of the comparison ended: its message stands above") from None
        finally:
            self.tell("SIGSTOP")

    def tell(self, name):
        with contextlib.suppress(AttributeError, OSError):
            os.killpg(self.process.pid, getattr(signal, name))

    def turn(self):
        """One turn; returns what it returns there."""
        self.tell("SIGCONT")
        self.pipe.send(True)
        return self.answer()

    def close(self):
        self.tell("SIGCONT")
        with contextlib.suppress(OSError):
            self.pipe.send(False)
        self.process.join(10)
        self.process.kill()
