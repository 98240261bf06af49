"""One module per part of the bench; each has `measure(scale) -> Report`."""
