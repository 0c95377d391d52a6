"""A small control plane on loopback under which the unmodified `modal` command runs function bodies in real subprocesses. See README.md."""

from .faults import Fault, RpcFault, fault_plan
from .plane import ControlPlane

__all__ = ["ControlPlane", "Fault", "RpcFault", "fault_plan"]
