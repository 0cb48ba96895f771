"""Federated training on Fashion-MNIST, guarded by SkyMask."""
