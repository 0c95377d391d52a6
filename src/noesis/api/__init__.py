"""The Python interface: what the commands do, as functions; the names at the top of `noesis` are these."""
