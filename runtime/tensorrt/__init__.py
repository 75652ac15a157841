"""The parts of the TensorRT backend: its library, its builder, its sessions on a CUDA device."""
