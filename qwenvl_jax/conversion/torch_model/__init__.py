"""Qwen-VL in PyTorch. Every release contains copies of these files under the released names.

They depend on torch, transformers, safetensors, tiktoken (or sentencepiece) and Pillow, but not on qwenvl_jax.
`AutoModelForCausalLM`, `AutoConfig` and `AutoTokenizer` load them with `trust_remote_code=True`.
"""
