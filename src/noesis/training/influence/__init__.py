"""How a training example's gradient lies to that of what is measured: `noesis influence`."""
