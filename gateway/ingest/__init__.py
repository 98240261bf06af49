"""The ways in: HTTP, the orders API, Redis streams, Redis pub/sub."""
