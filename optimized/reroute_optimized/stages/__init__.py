"""The stage-wise engine in plain PyTorch."""
