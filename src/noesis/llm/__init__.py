"""Language models as such: finding, rendering for, loading and asking them."""
