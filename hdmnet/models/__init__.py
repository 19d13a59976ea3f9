"""The networks: plain PyTorch modules that need nothing but torch and torchvision."""
