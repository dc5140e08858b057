"""`python -m secateur`: the same as the program `secateur`."""

from secateur.cli import main

if __name__ == "__main__":
    main()
