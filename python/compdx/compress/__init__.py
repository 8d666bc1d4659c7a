"""Ways to compress a model, each by a library that does it well: ``quantize`` by torchao."""
