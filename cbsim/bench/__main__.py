"""`python -m cbsim.bench`."""

from cbsim.bench.commands import bench

if __name__ == "__main__":
    bench(prog_name="cbsim bench")
