"""A model without torch: graphs for ONNX Runtime, and a decision model that transformers serves."""
