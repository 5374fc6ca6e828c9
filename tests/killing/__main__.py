"""`python -m tests.killing`. Nothing else is here, as processes that are spawned run this file again."""

from tests.killing.kills import kill_kinds

if __name__ == "__main__":
    kill_kinds()
