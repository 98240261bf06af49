"""The measurements of the README, in one run: `python -m bench`."""
