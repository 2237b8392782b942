"""What a run runs on: its devices, what they can do at most, and the choices that the machine makes."""

from lifecycle.hardware.hardware import Choice, Hardware, Probe, choose, device_name, native_bf16, probe

__all__ = ["Choice", "Hardware", "Probe", "choose", "device_name", "native_bf16", "probe"]
