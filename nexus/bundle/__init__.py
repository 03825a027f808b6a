"""Bundles: write, verify, load, quantize. Loading imports torch, transformers and safetensors only; nothing here needs a runtime."""
