"""Each side of a comparison in a process of its own, which is stopped while the other side works.

In one process, the sides would disturb each other: the workers of one fetch data while the other is
timed, and one uses the memory that the other has left to its process.
"""

import contextlib
import multiprocessing
import os
import signal


def serve(pipe, make, arguments):
    """The process of a side: calls make(*arguments) once, and its result once for each turn."""
    with contextlib.suppress(AttributeError):  # Windows has no process groups
        os.setpgrp()  # the workers of a DataLoader are stopped, too
    # those start as they always do, and not as this process did
    multiprocessing.set_start_method(None, force=True)
    turn = make(*arguments)
    pipe.send("ready")
    while pipe.recv():
        pipe.send(turn())


class Side:
    """A side of a comparison. Waits until it is ready.

    make: a function of a module, which the new process looks up by its name.
    """

    def __init__(self, make, *arguments):
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=serve, args=(other_end, make, arguments))
        self.process.start()
        other_end.close()
        self.answer()

    def answer(self):
        """Wait for the next message of the process, then stop it."""
        try:
            message = self.pipe.recv()
        except EOFError:
            self.process.join(10)  # it is still printing what went wrong
            self.process.kill()
            raise SystemExit("a side of the comparison ended: see its message above") from None
        self.signal("SIGSTOP")
        return message

    def signal(self, name):
        with contextlib.suppress(AttributeError, OSError):
            os.killpg(self.process.pid, getattr(signal, name))

    def turn(self):
        """What the function that `make` has returned gives this time."""
        self.signal("SIGCONT")
        self.pipe.send(True)
        return self.answer()

    def close(self):
        self.signal("SIGCONT")
        with contextlib.suppress(OSError):
            self.pipe.send(False)
        self.process.join(10)
        self.process.kill()
