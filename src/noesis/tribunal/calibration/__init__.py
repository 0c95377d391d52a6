"""How good a judge is, measured on pairs with a known answer."""
