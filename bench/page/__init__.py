"""How a report is kept and shown."""
