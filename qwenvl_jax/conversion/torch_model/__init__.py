"""Qwen-VL in PyTorch: the files of this folder lie in every release, under the released names.

They need torch, transformers, safetensors, tiktoken (or sentencepiece) and Pillow, and nothing of this package:
`AutoModelForCausalLM`, `AutoConfig` and `AutoTokenizer` load them with `trust_remote_code=True`.
"""
