"""Ways to run a network, behind one interface: a batch of tiles in, quantised maps of their cores out.

`contract` is the interface, `reference` eager float32 torch, which all others must agree with. On CPUs `compiled_lite`
runs `lite` and `openvino` everything else; `torch_cuda` runs on NVIDIA devices.
"""
