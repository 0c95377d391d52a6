"""The fast path for Llama-like models: one autograd function a decoder layer, frozen weights in FP8, NF4 or bfloat16, rows without padding."""
