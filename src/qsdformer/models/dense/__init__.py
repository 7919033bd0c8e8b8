"""Networks for maps and boxes on our backbones: semantic segmentation and detection.

Configurations are read without PyTorch; networks are imported from the files here.
"""
