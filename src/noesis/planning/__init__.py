"""How a run would train, how long it takes and what it costs: numbers only, no torch."""
