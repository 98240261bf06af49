"""A real-time order-event gateway: ways in, a durable log, a hub, ways out."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("order-gateway")
except PackageNotFoundError:  # run from a tree that was never installed
    __version__ = "0+unknown"
