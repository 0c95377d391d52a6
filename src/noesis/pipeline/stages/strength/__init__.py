"""How strongly the adapter is used: what is measured at each strength, and the rule that chooses among them."""
