"""Trained models for use elsewhere: ONNX, torch.export packages, and folders that timm loads; each verified."""
