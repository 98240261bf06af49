"""Two gateways on one Redis under load and faults, and the books that show whether anything was lost."""
