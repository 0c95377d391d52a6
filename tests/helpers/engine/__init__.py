"""What tests of the training engine share: tiny models of each family, and a step for them to take."""
