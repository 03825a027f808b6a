"""The student: backbone, bottleneck adapters, router, tokenizer. Imports torch, transformers and safetensors only."""
