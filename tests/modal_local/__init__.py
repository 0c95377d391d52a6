"""A small control plane on loopback under which the unmodified `modal` command runs function bodies in real subprocesses. See README.md."""

from .plane import ControlPlane, Fault

__all__ = ["ControlPlane", "Fault"]
