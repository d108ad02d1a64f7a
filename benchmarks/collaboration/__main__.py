"""`python -m benchmarks.collaboration`."""

from benchmarks.collaboration.run import main

if __name__ == "__main__":
    main()
