"""The project folder and this machine: noesis init, doctor, clean."""
