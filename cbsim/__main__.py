"""`python -m cbsim`, and the command `cbsim`, are the command line."""

import signal

if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    # Until the command line is there to say so, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cbsim.cli import main

if __name__ == "__main__":
    main()
