"""Ways in. An ingest fetches bytes and acknowledges; parsing, checking and appending is the intake's."""
