"""The model as pure functions: ViT, resampler, decoder. The only package that imports flax."""
