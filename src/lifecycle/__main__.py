"""`python -m lifecycle`."""

from lifecycle.run import main

if __name__ == "__main__":
    main()
