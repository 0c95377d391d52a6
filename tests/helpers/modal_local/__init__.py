"""A small control plane on loopback under which the unmodified `modal` command runs function bodies in real subprocesses. See README.md."""

from .faults import Fault
from .plane import ControlPlane
from .rpc_faults import RpcFault, fault_plan

__all__ = ["ControlPlane", "Fault", "RpcFault", "fault_plan"]
