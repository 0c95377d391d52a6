"""What goes wrong on the service: to containers, and to the calls of its control plane."""

from .calls import RpcFault, RpcFaults, fault_plan
from .containers import Fault, Faults

__all__ = ["Fault", "Faults", "RpcFault", "RpcFaults", "fault_plan"]
