"""`python -m xtoken`, also for launchers: `accelerate launch -m xtoken train run.yaml`."""

from xtoken.cli import main

if __name__ == "__main__":
    main()
