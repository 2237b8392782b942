"""Hardware of a run: its devices, their peak rates, and the choices made for the machine."""

from lifecycle.hardware.hardware import Choice, Hardware, Probe, choose, device_name, native_bf16, probe

__all__ = ["Choice", "Hardware", "Probe", "choose", "device_name", "native_bf16", "probe"]
