"""Backbones in mmsegmentation: the plug-in, its data sets, and the tool ``visionattn train-seg``.

Importing ``visionattn.segmentation.plugin`` registers everything with mmsegmentation, for its own tools too
(``custom_imports = dict(imports=["visionattn.segmentation.plugin"])`` in a config). This package alone imports none of
it, so that the tool can say what is not installed.
"""
