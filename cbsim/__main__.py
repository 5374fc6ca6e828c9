"""`python -m cbsim` is the command line."""

from cbsim.cli import main

if __name__ == "__main__":
    main()
